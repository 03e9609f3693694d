//! The table of internal snapshots, which `info` and `snapshot -l` print.

use coblk::block::ImageSnapshot;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::size;

/// The table, with its title.
pub(super) fn table(snapshots: &[ImageSnapshot]) -> String {
    let mut text = "Snapshot list:\n".to_owned();
    let mut row = |columns: [&str; 6]| {
        let [id, tag, size, date, clock, icount] = columns;
        text.push_str(&format!(
            "{id:<7} {tag:<16} {size:>8} {date:>19} {clock:>15} {icount:>10}\n"
        ));
    };
    row(["ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT"]);
    for snapshot in snapshots {
        let (size, date) = (size::human(snapshot.vm_state_size), date(snapshot.date.0));
        let icount = snapshot.icount.map_or_else(|| "--".to_owned(), |it| it.to_string());
        row([&snapshot.id, &snapshot.name, &size, &date, &clock(snapshot.vm_clock), &icount]);
    }
    text
}

/// A moment in the time of this place.
fn date(seconds: u64) -> String {
    let moment = i64::try_from(seconds).ok().and_then(|it| Timestamp::from_second(it).ok());
    let moment = moment.unwrap_or(Timestamp::MAX).to_zoned_datetime(TimeZone::system());
    moment.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// Hours, minutes, seconds and milliseconds of nanoseconds.
fn clock(nanoseconds: u64) -> String {
    let (seconds, milliseconds) = (nanoseconds / 1_000_000_000, nanoseconds / 1_000_000 % 1000);
    let (minutes, hours) = (seconds / 60 % 60, seconds / 3600);
    format!("{hours:04}:{minutes:02}:{:02}.{milliseconds:03}", seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_shows_hours() {
        assert_eq!(clock(0), "0000:00:00.000");
        assert_eq!(clock(90_061_123_456_789), "0025:01:01.123");
    }
}
