//! One head of one layer in one block: where its keys and values lie, and how they are rounded.

use bytemuck::Pod;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::{BLOCK_TOKENS, KvType, PANEL};
use crate::cpu::isa::PanelValue;

/// The bytes of a head's keys, values and scales.
pub(super) struct Head<B> {
    pub keys: B,
    pub values: B,
    pub scales: B,
}

impl Head<&mut [u8]> {
    /// Stores one token, rounded to nearest even.
    pub fn write(&mut self, kv_type: KvType, slot: usize, key: &[f32], value: &[f32]) {
        match kv_type {
            KvType::F32 => self.write_as::<f32>(slot, key, value, |from, to| to.copy_from_slice(from)),
            KvType::F16 => self.write_as::<f16>(slot, key, value, |from, to| to.convert_from_f32_slice(from)),
            KvType::Bf16 => self.write_as::<bf16>(slot, key, value, |from, to| to.convert_from_f32_slice(from)),
            KvType::Int8 => {
                let (key_scale, value_scale) = (Scale::of(key), Scale::of(value));
                write_key(bytemuck::cast_slice_mut(self.keys), slot, key, |from, to| key_scale.encode(from, to));
                write_value(bytemuck::cast_slice_mut(self.values), slot, value, |from, to| {
                    value_scale.encode(from, to)
                });
                let scales: &mut [f32] = bytemuck::cast_slice_mut(self.scales);
                (scales[slot], scales[BLOCK_TOKENS + slot]) = (key_scale.scale, value_scale.scale);
            }
        }
    }

    fn write_as<T: PanelValue + Pod>(
        &mut self,
        slot: usize,
        key: &[f32],
        value: &[f32],
        narrow: impl Fn(&[f32], &mut [T]),
    ) {
        write_key(bytemuck::cast_slice_mut(self.keys), slot, key, &narrow);
        write_value(bytemuck::cast_slice_mut(self.values), slot, value, &narrow);
    }
}

impl Head<&[u8]> {
    /// Reads one token.
    pub fn read(&self, kv_type: KvType, slot: usize, key: &mut [f32], value: &mut [f32]) {
        match kv_type {
            KvType::F32 => self.read_as::<f32>(slot, key, value),
            KvType::F16 => self.read_as::<f16>(slot, key, value),
            KvType::Bf16 => self.read_as::<bf16>(slot, key, value),
            KvType::Int8 => {
                self.read_as::<i8>(slot, key, value);
                let scales: &[f32] = bytemuck::cast_slice(self.scales);
                key.iter_mut().for_each(|code| *code *= scales[slot]);
                value.iter_mut().for_each(|code| *code *= scales[BLOCK_TOKENS + slot]);
            }
        }
    }

    fn read_as<T: PanelValue + Pod>(&self, slot: usize, key: &mut [f32], value: &mut [f32]) {
        let (keys, values): (&[T], &[T]) = (bytemuck::cast_slice(self.keys), bytemuck::cast_slice(self.values));
        key.iter_mut().enumerate().for_each(|(d, key)| *key = keys[key_place(slot, d)].widen());
        value.iter_mut().enumerate().for_each(|(d, value)| *value = values[value_place(slot, d)].widen());
    }
}

/// Where value `d` of a key lies among its head's keys.
fn key_place(slot: usize, d: usize) -> usize {
    (d / 2 * BLOCK_TOKENS + slot) * 2 + d % 2
}

/// Where value `d` of a value lies among its head's values.
fn value_place(slot: usize, d: usize) -> usize {
    d / PANEL * PANEL * BLOCK_TOKENS + (slot / 2 * PANEL + d % PANEL) * 2 + slot % 2
}

/// Writes one key, brought to its type by `narrow`, a panel's width at a time.
fn write_key<T: PanelValue>(keys: &mut [T], slot: usize, key: &[f32], narrow: impl Fn(&[f32], &mut [T])) {
    let mut buffer = [T::default(); PANEL];
    for (i, key) in key.chunks(PANEL).enumerate() {
        let buffer = &mut buffer[..key.len()];
        narrow(key, buffer);
        let lanes = keys[key_place(slot, i * PANEL)..].chunks_mut(2 * BLOCK_TOKENS);
        for (pair, lanes) in buffer.chunks(2).zip(lanes) {
            lanes[..pair.len()].copy_from_slice(pair);
        }
    }
}

/// Writes one value, brought to its type by `narrow`, panel by panel.
fn write_value<T: PanelValue>(values: &mut [T], slot: usize, value: &[f32], narrow: impl Fn(&[f32], &mut [T])) {
    let mut buffer = [T::default(); PANEL];
    for (i, value) in value.chunks(PANEL).enumerate() {
        let buffer = &mut buffer[..value.len()];
        narrow(value, buffer);
        let lanes = values[value_place(slot, i * PANEL)..].iter_mut().step_by(2);
        buffer.iter().zip(lanes).for_each(|(value, lane)| *lane = *value);
    }
}

/// The scale of an int8 key or value.
struct Scale {
    scale: f32,
    inverse: f32,
}

impl Scale {
    fn of(x: &[f32]) -> Scale {
        // The order of finite magnitudes is that of their bits; what is not finite comes behind them.
        let largest = x.iter().map(|x| x.to_bits() & 0x7fff_ffff).max().unwrap_or(0);
        // Seven of 24 bits go, half of the last that stays is added before.
        let scale = f32::from_bits(((f32::from_bits(largest) / 127.0).to_bits() + 0x40) & !0x7f);
        if largest >= f32::INFINITY.to_bits() {
            Scale { scale: f32::NAN, inverse: 0.0 }
        } else if scale < f32::MIN_POSITIVE {
            Scale { scale: 0.0, inverse: 0.0 }
        } else {
            Scale { scale, inverse: 1.0 / scale }
        }
    }

    fn encode(&self, x: &[f32], codes: &mut [i8]) {
        const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
        for (x, code) in x.iter().zip(codes) {
            *code = (x * self.inverse + ROUND).to_bits() as i8;
        }
    }
}
