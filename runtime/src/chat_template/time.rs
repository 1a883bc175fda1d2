//! `strftime_now`: today's date in a template, in UTC.

use std::time::{SystemTime, UNIX_EPOCH};

const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// The time now, written as C's `strftime` does.
pub(super) fn strftime_now(format: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    strftime(format, &Civil::from_unix(now.as_secs(), now.subsec_micros()))
}

/// A time of day on a day of the Gregorian calendar.
#[derive(Debug)]
struct Civil {
    unix: u64,
    micros: u32,
    year: u64,
    /// 1 to 12.
    month: usize,
    day: u64,
    /// 1 to 366.
    day_of_year: u64,
    /// Monday is 0.
    weekday: usize,
    hour: u64,
    minute: u64,
    second: u64,
}

impl Civil {
    fn from_unix(unix: u64, micros: u32) -> Civil {
        let (mut days, of_day) = (unix / 86_400, unix % 86_400);
        let weekday = usize::try_from((days + 3) % 7).unwrap_or(0);
        let mut year = 1970;
        while days >= 365 + u64::from(is_leap(year)) {
            days -= 365 + u64::from(is_leap(year));
            year += 1;
        }
        let day_of_year = days + 1;
        let mut month = 1;
        for length in [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30] {
            if days < length {
                break;
            }
            days -= length;
            month += 1;
        }
        Civil {
            unix,
            micros,
            year,
            month,
            day: days + 1,
            day_of_year,
            weekday,
            hour: of_day / 3600,
            minute: of_day / 60 % 60,
            second: of_day % 60,
        }
    }

    /// ISO 8601: the year and the number of the week that this day's Thursday is in.
    fn iso_week(&self) -> (u64, u64) {
        let weekday = self.weekday as u64;
        let week = (self.day_of_year + 9 - weekday) / 7;
        let length = |year: u64| {
            // A year has 53 weeks if it begins on a Thursday, or is a leap year and begins on a Wednesday.
            let days = (year - 1970) * 365 + (1970..year).filter(|&year| is_leap(year)).count() as u64;
            let first = (days + 3) % 7;
            52 + u64::from(first == 3 || first == 2 && is_leap(year))
        };
        match week {
            0 if self.year > 1970 => (self.year - 1, length(self.year - 1)),
            53 if length(self.year) == 52 => (self.year + 1, 1),
            week => (self.year, week),
        }
    }
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400)
}

fn strftime(format: &str, time: &Civil) -> String {
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        // GNU's flags: `-` no padding, `_` spaces, `0` zeros. What is no code stands for itself.
        let flag = chars.clone().next().filter(|c| matches!(c, '-' | '_' | '0'));
        let code = chars.clone().nth(usize::from(flag.is_some()));
        match code.and_then(|code| field(code, flag, time)) {
            Some(text) => {
                out.push_str(&text);
                chars.nth(usize::from(flag.is_some()));
            }
            None => out.push('%'),
        }
    }
    out
}

fn field(code: char, flag: Option<char>, time: &Civil) -> Option<String> {
    let padded = |value: u64, width: usize, default: char| match flag.unwrap_or(default) {
        '-' => value.to_string(),
        '_' => format!("{value:>width$}"),
        _ => format!("{value:0>width$}"),
    };
    let number = |value, width| padded(value, width, '0');
    let day = DAYS.get(time.weekday).copied().unwrap_or("");
    let month = MONTHS.get(time.month.wrapping_sub(1)).copied().unwrap_or("");
    let short = |name: &str| name.get(..3).unwrap_or("").to_owned();
    let twelve = (time.hour + 11) % 12 + 1;
    let whole = |format: &str| strftime(format, time);
    Some(match code {
        'a' => short(day),
        'A' => day.to_owned(),
        'b' | 'h' => short(month),
        'B' => month.to_owned(),
        'c' => whole("%a %b %e %H:%M:%S %Y"),
        'C' => number(time.year / 100, 2),
        'd' => number(time.day, 2),
        'D' | 'x' => whole("%m/%d/%y"),
        'e' => padded(time.day, 2, '_'),
        'f' => format!("{:06}", time.micros),
        'F' => whole("%Y-%m-%d"),
        'g' => number(time.iso_week().0 % 100, 2),
        'G' => number(time.iso_week().0, 4),
        'H' => number(time.hour, 2),
        'I' => number(twelve, 2),
        'j' => number(time.day_of_year, 3),
        'k' => padded(time.hour, 2, '_'),
        'l' => padded(twelve, 2, '_'),
        'm' => number(time.month as u64, 2),
        'M' => number(time.minute, 2),
        'n' => "\n".to_owned(),
        'p' => if time.hour < 12 { "AM" } else { "PM" }.to_owned(),
        'P' => if time.hour < 12 { "am" } else { "pm" }.to_owned(),
        'r' => whole("%I:%M:%S %p"),
        'R' => whole("%H:%M"),
        's' => time.unix.to_string(),
        'S' => number(time.second, 2),
        't' => "\t".to_owned(),
        'T' | 'X' => whole("%H:%M:%S"),
        'u' => (time.weekday + 1).to_string(),
        'U' => number((time.day_of_year + 6 - (time.weekday as u64 + 1) % 7) / 7, 2),
        'V' => number(time.iso_week().1, 2),
        'w' => ((time.weekday + 1) % 7).to_string(),
        'W' => number((time.day_of_year + 6 - time.weekday as u64) / 7, 2),
        'y' => number(time.year % 100, 2),
        'Y' => number(time.year, 4),
        // Python's `datetime.now()` has no zone.
        'z' | 'Z' => String::new(),
        '%' => "%".to_owned(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_written_as_python_writes_them() {
        // From Python: datetime.utcfromtimestamp(t).strftime(format).
        for (unix, format, expected) in [
            (1_738_368_000, "%d %b %Y", "01 Feb 2025"),
            (1_709_164_799, "%Y-%m-%d %H:%M:%S", "2024-02-28 23:59:59"),
            (1_709_164_800, "%A, %B %-d, %Y (%j)", "Thursday, February 29, 2024 (060)"),
            (1_735_603_200, "%G-W%V-%u %U %W %w %y", "2025-W01-2 52 53 2 24"),
            (1_609_459_200, "%G-W%V %U %W", "2020-W53 00 00"),
            (1_704_067_200, "%V %U %W %a", "01 00 01 Mon"),
            (951_782_400, "%D %F %T %I %p %e", "02/29/00 2000-02-29 00:00:00 12 AM 29"),
            (0, "%c|%x|%X|%%|é", "Thu Jan  1 00:00:00 1970|01/01/70|00:00:00|%|é"),
            (0, "%Q 5% %-d %-", "%Q 5% 1 %-"),
        ] {
            assert_eq!(strftime(format, &Civil::from_unix(unix, 0)), expected, "{format} of {unix}");
        }
    }
}
