//! t
use infer_kernels::quant::*;
use infer_kernels::*;
use std::time::Instant;
fn main() {
    let cols = 2048;
    let rows = 512;
    let src: Vec<f32> = (0..rows * cols)
        .map(|i| ((i as f32 * 0.37).sin() + (i as f32 * 1.77).sin() + (i as f32 * 0.11).cos()))
        .collect();
    let mut p = vec![0u8; int4::packed_bytes(rows, cols).unwrap()];
    for _ in 0..2 {
        let t = Instant::now();
        int4::quantize_rows(&src, cols, &mut p);
        println!("int4 quantize {:.1} Mw/s/thread", (rows * cols) as f64 / t.elapsed().as_secs_f64() / 1e6);
    }
    let mut p = vec![0u8; int8::packed_bytes(rows, cols).unwrap()];
    for _ in 0..2 {
        let t = Instant::now();
        int8::quantize_rows(&src, cols, &mut p);
        println!("int8 quantize {:.1} Mw/s/thread", (rows * cols) as f64 / t.elapsed().as_secs_f64() / 1e6);
    }
    let team = Team::new(2, Isa::from_env().unwrap()).unwrap();
    let t = Instant::now();
    team.run(|crew| {
        for _ in 0..100000 {
            crew.for_each(2, |i| {
                std::hint::black_box(i);
            })
        }
    });
    println!("op {:.3} us", t.elapsed().as_secs_f64() * 10.0);
    let t = Instant::now();
    for _ in 0..2000 {
        team.run(|_| ())
    }
    println!("pass {:.1} us", t.elapsed().as_secs_f64() / 2000.0 * 1e6);
    let one = Team::new(1, Isa::best()).unwrap();
    let t = Instant::now();
    for _ in 0..2000 {
        one.run(|_| ())
    }
    println!("pass of one {:.2} us", t.elapsed().as_secs_f64() / 2000.0 * 1e6);
    for (nh, nkv, hd, ctx, n) in [
        (32, 4, 64, 2048, 1),
        (32, 4, 64, 2048, 512),
        (32, 32, 128, 4096, 1),
        (32, 8, 128, 4096, 1),
        (32, 8, 128, 4096, 512),
        (32, 1, 128, 8192, 1),
    ] {
        let layout = KvLayout { n_layers: 8, n_kv_heads: nkv, head_dim: hd, kv_type: KvType::F16 };
        let nb = ctx / 16;
        let mut pool: Vec<_> = (0..nb).map(|_| KvBlock::new(&layout)).collect();
        let k = vec![0.1f32; nkv * hd];
        for b in &mut pool {
            for l in 0..8 {
                for s in 0..16 {
                    b.write(&layout, l, s, &k, &k)
                }
            }
        }
        let ids: Vec<u32> = (0..nb as u32).collect();
        let tables = [BlockTable { first_block: 0, blocks: &ids }];
        let rows: Vec<_> = (ctx - n..ctx).map(|p| QueryRow { sequence: 0, position: p }).collect();
        let q = vec![0.3f32; n * nh * hd];
        let mut out = vec![0.0; n * nh * hd];
        let shape =
            AttentionShape { n_heads: nh, n_kv_heads: nkv, head_dim: hd, scale: 0.1, softcap: None, window: None };
        let mut best = f64::MAX;
        for _ in 0..5 {
            let t = Instant::now();
            team.run(|c| {
                for l in 0..8 {
                    attend(c, &shape, &layout, l, &q, nh * hd, &rows, &tables, &pool, &mut out)
                }
            });
            best = best.min(t.elapsed().as_secs_f64() / 8.0);
        }
        let bytes = (ctx * nkv * hd * 2 * 2) as f64;
        let fl = 4.0 * (n * nh * hd) as f64 * (ctx as f64 - n as f64 / 2.0);
        println!(
            "attend {nh}/{nkv}x{hd} ctx {ctx} rows {n}: {:.1} us, {:.1} GB/s, {:.1} GFLOP/s",
            best * 1e6,
            bytes / best / 1e9,
            fl / best / 1e9
        );
    }
    let mut x = vec![0.5f32; 1 << 20];
    let t = Instant::now();
    activate(Activation::Silu, &mut x);
    println!("silu {:.2} ns", t.elapsed().as_secs_f64() * 1e9 / (1 << 20) as f64);
    let t = Instant::now();
    activate(Activation::Gelu, &mut x);
    println!("gelu {:.2} ns", t.elapsed().as_secs_f64() * 1e9 / (1 << 20) as f64);
    let t = Instant::now();
    activate(Activation::GeluTanh, &mut x);
    println!("gelutanh {:.2} ns", t.elapsed().as_secs_f64() * 1e9 / (1 << 20) as f64);
    let mut y = vec![0.0; 2048];
    let t = Instant::now();
    for _ in 0..1000 {
        rms_norm(&x[..2048], &x[..2048], 1e-5, &mut y);
    }
    println!("rms 2048 {:.2} us", t.elapsed().as_secs_f64() * 1e3);
}
