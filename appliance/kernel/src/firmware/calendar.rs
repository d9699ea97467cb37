//! The date, out of a PC's calendar clock (MC146818 and its heirs), and how it is shown.
//! Pure: whoever calls says how a register is read, so it is tested on the host.

use core::fmt;

/// Registers of the clock.
const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;

/// Status A: the registers are about to change, for up to 2 ms.
const UPDATING: u8 = 1 << 7;
/// Status B: numbers are plain; otherwise each is two decimal digits.
const BINARY: u8 = 1 << 2;
/// Status B: hours count from 0 to 23; otherwise from 1 to 12, with [`AFTERNOON`].
const HOURS_24: u8 = 1 << 1;
const AFTERNOON: u8 = 1 << 7;

/// How often status A is read before the clock counts as absent: a port access takes close
/// to a microsecond, so this is well beyond 2 ms.
const POLLS: u32 = 20_000;
/// Readings, of which two in a row must agree: one alone may straddle a change.
const READINGS: usize = 6;

/// The first year that is believed: this program did not exist before, and a clock that
/// lost its battery starts again in 1980 or 2000. The last is 2099: the register of the
/// century is in another place on every other machine.
const FIRST_YEAR: u64 = 2025;
/// Days from 1970 to 2000.
const DAYS_TO_2000: u64 = 10_957;

/// The registers from [`SECONDS`] to [`YEAR`], then status B.
type Registers = [u8; 7];

fn once(read: &mut impl FnMut(u8) -> u8) -> Option<Registers> {
    if !(0..POLLS).any(|_| read(STATUS_A) & UPDATING == 0) {
        return None;
    }
    Some([SECONDS, MINUTES, HOURS, DAY, MONTH, YEAR, STATUS_B].map(read))
}

/// Unix time in seconds, taking the clock to run in UTC, as virtual machines and most
/// servers set it; `read` gives a register. `None` when there is no clock, it is never
/// steady, or it says a date that cannot be.
#[must_use]
pub fn unix_time(mut read: impl FnMut(u8) -> u8) -> Option<u64> {
    let mut before = once(&mut read)?;
    for _ in 1..READINGS {
        let now = once(&mut read)?;
        if now == before {
            return seconds_since_1970(now);
        }
        before = now;
    }
    None
}

fn seconds_since_1970(
    [seconds, minutes, hours, day, month, year, status]: Registers,
) -> Option<u64> {
    let number = |value: u8, end: u64| {
        let (tens, ones) = (value >> 4, value & 0xf);
        let number = match status & BINARY != 0 {
            true => value,
            false if tens < 10 && ones < 10 => tens * 10 + ones,
            false => return None,
        };
        Some(u64::from(number)).filter(|&number| number < end)
    };
    let seconds = number(seconds, 60)?;
    let minutes = number(minutes, 60)?;
    let hours = match status & HOURS_24 != 0 {
        true => number(hours, 24)?,
        false => {
            let hour = number(hours & !AFTERNOON, 13).filter(|&hour| hour != 0)?;
            hour % 12 + if hours & AFTERNOON != 0 { 12 } else { 0 }
        }
    };
    let year = 2000 + number(year, 100)?;
    let month = number(month, 13).filter(|&month| month != 0)?;
    let day = number(day, days_in(month, year) + 1).filter(|&day| day != 0)?;
    if year < FIRST_YEAR {
        return None;
    }
    let whole_years: u64 = (2000..year).map(|year| 365 + u64::from(is_leap(year))).sum();
    let whole_months: u64 = (1..month).map(|month| days_in(month, year)).sum();
    let days = DAYS_TO_2000 + whole_years + whole_months + day - 1;
    Some(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
}

/// Unix time in seconds, shown as a date and a time of UTC (ISO 8601). What lies outside of
/// the years a register can say is shown as unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Date(pub u64);

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, second) = (self.0 / 86_400, self.0 % 86_400);
        let Some(mut days) = days.checked_sub(DAYS_TO_2000) else {
            return f.write_str("an unknown date");
        };
        let mut year = 2000;
        while year < 2100 && days >= 365 + u64::from(is_leap(year)) {
            days -= 365 + u64::from(is_leap(year));
            year += 1;
        }
        if year == 2100 {
            return f.write_str("an unknown date");
        }
        let mut month = 1;
        while days >= days_in(month, year) {
            days -= days_in(month, year);
            month += 1;
        }
        let (hour, minute) = (second / 3600, second / 60 % 60);
        write!(f, "{year}-{month:02}-{:02}T{hour:02}:{minute:02}:{:02}Z", days + 1, second % 60)
    }
}

/// Right from 2000 to 2099.
const fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4)
}

const fn days_in(month: u64, year: u64) -> u64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-22 08:53:49, as a clock with decimal digits and 24 hours has it.
    const DECIMAL: Registers = [0x49, 0x53, 0x08, 0x22, 0x11, 0x26, HOURS_24];
    /// By `date -u -d "2026-11-22 08:53:49" +%s`; those below likewise.
    const THEN: u64 = 1_795_337_629;

    #[test]
    fn a_date_is_shown_as_it_was_read() {
        assert_eq!(Date(THEN).to_string(), "2026-11-22T08:53:49Z");
        // `date -u -d @N`, around the ends of a leap day, a year and a century.
        assert_eq!(Date(1_835_395_199).to_string(), "2028-02-28T23:59:59Z");
        assert_eq!(Date(1_835_395_200).to_string(), "2028-02-29T00:00:00Z");
        assert_eq!(Date(1_835_481_600).to_string(), "2028-03-01T00:00:00Z");
        assert_eq!(Date(4_102_444_799).to_string(), "2099-12-31T23:59:59Z");
        assert_eq!(Date(4_102_444_800).to_string(), "an unknown date");
        assert_eq!(Date(0).to_string(), "an unknown date");
    }

    fn with(changes: &[(usize, u8)]) -> Registers {
        let mut registers = DECIMAL;
        for &(index, value) in changes {
            registers[index] = value;
        }
        registers
    }

    /// A clock that stands still.
    fn at(
        [seconds, minutes, hours, day, month, year, status_b]: Registers,
    ) -> impl FnMut(u8) -> u8 {
        move |register| match register {
            SECONDS => seconds,
            MINUTES => minutes,
            HOURS => hours,
            DAY => day,
            MONTH => month,
            YEAR => year,
            STATUS_B => status_b,
            _ => 0,
        }
    }

    #[test]
    fn both_encodings_and_both_halves_of_the_day_are_read() {
        assert_eq!(unix_time(at(DECIMAL)), Some(THEN));
        assert_eq!(unix_time(at([49, 53, 8, 22, 11, 26, BINARY | HOURS_24])), Some(THEN));
        assert_eq!(unix_time(at(with(&[(2, 0x88), (6, 0)]))), Some(THEN + 12 * 3600));
        // 12 at night is the first hour of the day, not the thirteenth.
        assert_eq!(unix_time(at(with(&[(2, 0x12), (6, 0)]))), Some(THEN - 8 * 3600));
        let leap_day = with(&[(3, 0x29), (4, 0x02), (5, 0x28)]);
        assert_eq!(unix_time(at(leap_day)), Some(1_835_427_229));
        let last = with(&[(3, 0x31), (4, 0x12), (5, 0x99)]);
        assert_eq!(unix_time(at(last)), Some(4_102_390_429));
    }

    #[test]
    fn what_cannot_be_a_date_is_none() {
        let wrong: [&[(usize, u8)]; 10] = [
            &[(0, 0x60)],
            &[(1, 0x5a)],
            &[(2, 0x24)],
            &[(2, 0x13), (6, 0)],
            &[(2, 0x00), (6, 0)],
            &[(3, 0x31)],
            &[(3, 0x00)],
            &[(4, 0x13)],
            &[(3, 0x29), (4, 0x02), (5, 0x27)],
            &[(5, 0x24)],
        ];
        for changes in wrong {
            assert_eq!(unix_time(at(with(changes))), None, "{changes:x?}");
        }
        assert_eq!(unix_time(|_| 0xff), None, "nothing answers");
    }

    #[test]
    fn a_reading_that_straddles_a_change_is_not_taken() {
        // The minute turns after the seconds of the first reading were read.
        let mut reads = 0;
        let turning = |register| {
            reads += 1;
            let registers = if reads > 2 { with(&[(0, 0x00), (1, 0x54)]) } else { DECIMAL };
            at(registers)(register)
        };
        assert_eq!(unix_time(turning), Some(THEN + 11));
        // A clock that is another time at every look is none.
        let mut second = 0;
        let wild = |register| match register {
            SECONDS => {
                second = (second + 1) % 10;
                second
            }
            register => at(DECIMAL)(register),
        };
        assert_eq!(unix_time(wild), None);
    }
}
