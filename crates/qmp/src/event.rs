//! [`Event`]: what clients are told unasked, and how often at most.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::{Map, Value};

/// How long an event that is limited keeps others of its kind back.
pub const PERIOD: Duration = Duration::from_secs(1);
/// Kinds of limited events that are told apart at one time. Further ones are not limited.
const MAX_KINDS: usize = 1024;

/// The event that says how many events were dropped; QEMU keeps all, in memory without bound.
pub const EVENTS_DROPPED: &str = "X_COBLK_EVENTS_DROPPED";

/// An event, with the time at which it was made.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Event {
    event: &'static str,
    #[serde(skip_serializing_if = "Map::is_empty")]
    data: Map<String, Value>,
    timestamp: Timestamp,
    #[serde(skip)]
    limit: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Timestamp {
    seconds: u64,
    microseconds: u32,
}

impl Event {
    /// An event without data, that happens now.
    pub fn new(name: &'static str) -> Event {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let timestamp = Timestamp { seconds: now.as_secs(), microseconds: now.subsec_micros() };
        Event { event: name, data: Map::new(), timestamp, limit: None }
    }

    /// With a member of its data.
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Event {
        self.data.insert(name.to_owned(), value.into());
        self
    }

    /// One a second at most of those with the same name and `key`. The last one of a second is told at
    /// its end, those before it are not.
    pub fn limited(mut self, key: &str) -> Event {
        self.limit = Some(key.to_owned());
        self
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.event
    }
}

/// Which limited events were told a short while ago, until when, and what has come since.
#[derive(Default)]
pub struct Limits {
    recent: RefCell<HashMap<(&'static str, String), Recent>>,
}

struct Recent {
    until: Instant,
    latest: Option<Event>,
}

impl Limits {
    /// The event, if it may be told now. If not, it is kept until [`due`](Self::due) returns it.
    pub fn pass(&self, event: Event, now: Instant) -> Option<Event> {
        let Some(key) = &event.limit else { return Some(event) };
        let key = (event.event, key.clone());
        let mut recent = self.recent.borrow_mut();
        if let Some(before) = recent.get_mut(&key) {
            before.latest = Some(event);
            return None;
        }
        if recent.len() < MAX_KINDS {
            recent.insert(key, Recent { until: now + PERIOD, latest: None });
        }
        Some(event)
    }

    /// The events whose time has come.
    pub fn due(&self, now: Instant) -> Vec<Event> {
        let mut due = Vec::new();
        self.recent.borrow_mut().retain(|_, recent| {
            if recent.until > now {
                return true;
            }
            let Some(event) = recent.latest.take() else { return false };
            due.push(event);
            recent.until = now + PERIOD;
            true
        });
        due
    }

    /// When to look again, if there is a reason to.
    pub fn next(&self) -> Option<Instant> {
        self.recent.borrow().values().map(|recent| recent.until).min()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_has_data_only_if_there_is_any() {
        let mut event = Event::new("SHUTDOWN").with("guest", false);
        event.timestamp = Timestamp { seconds: 1, microseconds: 2 };
        let expected = json!({"event": "SHUTDOWN", "data": {"guest": false},
            "timestamp": {"seconds": 1, "microseconds": 2}});
        assert_eq!(serde_json::to_value(&event).unwrap(), expected);
        event.data = Map::new();
        assert_eq!(serde_json::to_value(&event).unwrap().get("data"), None);
        assert!(Event::new("A").timestamp.seconds > 1_700_000_000);
    }

    #[test]
    fn a_limited_event_is_told_once_a_period() {
        let (limits, start) = (Limits::default(), Instant::now());
        let event = |number: i32| Event::new("E").with("n", number).limited("disk0");
        let after = |ms: u64| start + Duration::from_millis(ms);
        assert!(limits.pass(event(1), start).is_some());
        assert!(limits.pass(event(2), after(1)).is_none());
        assert!(limits.pass(event(3), after(2)).is_none());
        assert!(limits.pass(Event::new("E").limited("disk1"), after(2)).is_some());
        assert!(limits.pass(Event::new("E"), after(2)).is_some());
        assert_eq!(limits.next(), Some(start + PERIOD));
        assert_eq!(limits.due(after(999)), []);
        let due = limits.due(after(1000));
        assert_eq!((due.len(), &due[0].data["n"]), (1, &json!(3)));
        assert!(limits.pass(event(4), after(1001)).is_none());
        assert_eq!(limits.due(after(3000))[0].data["n"], 4);
        assert_eq!(limits.due(after(5000)), []);
        assert_eq!(limits.next(), None);
        assert!(limits.pass(event(5), after(5000)).is_some());
    }

    #[test]
    fn the_kinds_that_are_kept_are_bounded() {
        let (limits, now) = (Limits::default(), Instant::now());
        for key in 0..2 * MAX_KINDS {
            assert!(limits.pass(Event::new("E").limited(&key.to_string()), now).is_some());
        }
        assert_eq!(limits.recent.borrow().len(), MAX_KINDS);
    }
}
