//! The rules of a [`BlkDebug`](super::BlkDebug): which requests go wrong, and how.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::accounting::RequestKind;
use crate::driver::debug_event::DebugEvent;

/// The state that rules begin in.
const FIRST_STATE: u64 = 1;

/// Which requests go wrong, and how.
///
/// A request matches if it is of one of the kinds and touches the range; without either, every
/// request does. Of those that match, the rule lets the first pass up to [`nth`](Self::nth), leaves
/// the rest to [chance](Self::probability), and [ends](Self::times) when it has struck often
/// enough.
///
/// ```
/// use coblk_block::RequestKind;
/// use coblk_block::filters::blkdebug::Rule;
/// use std::time::Duration;
///
/// // The third write to the first 64 KiB is torn after 512 bytes, and that after 10 ms.
/// let rule = Rule::short(512)
///     .on(RequestKind::Write)
///     .within(0..65536)
///     .nth(3)
///     .once()
///     .after(Duration::from_millis(10));
/// # let _ = rule;
/// ```
#[derive(Clone, Debug)]
pub struct Rule {
    event: Option<DebugEvent>,
    state: Option<u64>,
    kinds: [bool; RequestKind::COUNT],
    range: Option<Range<u64>>,
    nth: u64,
    times: Option<u64>,
    probability: Option<f64>,
    strike: Strike,
}

/// The effect of a rule on one request.
#[derive(Clone, Debug, Default)]
pub(super) struct Strike {
    pub(super) delay: Option<Duration>,
    pub(super) errno: Option<i32>,
    /// How much is transferred before the error.
    pub(super) short_bytes: Option<u64>,
}

impl Rule {
    fn new(strike: Strike) -> Rule {
        let kinds = [false; RequestKind::COUNT];
        Rule {
            event: None,
            state: None,
            kinds,
            range: None,
            nth: 1,
            times: None,
            probability: None,
            strike,
        }
    }

    /// Fails with `errno`, without asking the child.
    pub fn fail(errno: i32) -> Rule {
        Rule::new(Strike { errno: Some(errno), ..Strike::default() })
    }

    /// Waits for `delay` on the context's clock, and then goes on.
    pub fn delay(delay: Duration) -> Rule {
        Rule::new(Strike { delay: Some(delay), ..Strike::default() })
    }

    /// Transfers the first `bytes` bytes, in whole blocks of the child, and fails with EIO
    /// afterwards: the request path knows no partial success. A flush just fails.
    pub fn short(bytes: u64) -> Rule {
        let strike = Strike { errno: Some(libc::EIO), short_bytes: Some(bytes), delay: None };
        Rule::new(strike)
    }

    /// Another errno than that of the constructor.
    pub fn errno(mut self, errno: i32) -> Rule {
        self.strike.errno = Some(errno);
        self
    }

    /// Waits before that.
    pub fn after(mut self, delay: Duration) -> Rule {
        self.strike.delay = Some(delay);
        self
    }

    /// Takes effect when this event happens, for all requests from then on, until an event that
    /// another rule waits for happens; that also ends rules that wait for none.
    pub fn when(mut self, event: DebugEvent) -> Rule {
        self.event = Some(event).filter(|event| *event != DebugEvent::None);
        self
    }

    /// Takes effect only if the [state](Rules::set_state_when) is this one then.
    pub fn in_state(mut self, state: u64) -> Rule {
        self.state = Some(state);
        self
    }

    /// Concerns requests of this kind; can be said several times.
    pub fn on(mut self, kind: RequestKind) -> Rule {
        self.kinds[kind.index()] = true;
        self
    }

    /// Concerns requests that touch this range of bytes. A flush, which has no range, does not.
    pub fn within(mut self, range: Range<u64>) -> Rule {
        self.range = Some(range);
        self
    }

    /// Strikes from the `nth` request that matches on, counted from 1.
    pub fn nth(mut self, nth: u64) -> Rule {
        self.nth = nth;
        self
    }

    /// Strikes once.
    pub fn once(self) -> Rule {
        self.times(1)
    }

    /// Strikes that many times.
    pub fn times(mut self, times: u64) -> Rule {
        self.times = Some(times);
        self
    }

    /// Strikes with this probability, 0 to 1, drawn from the seed of the [`Rules`].
    pub fn probability(mut self, probability: f64) -> Rule {
        self.probability = Some(probability);
        self
    }

    fn matches(&self, kind: RequestKind, range: &Range<u64>) -> bool {
        let any_kind = !self.kinds.contains(&true);
        let touches = |own: &Range<u64>| own.start < range.end && range.start < own.end;
        (any_kind || self.kinds[kind.index()]) && self.range.as_ref().is_none_or(touches)
    }
}

/// Names a rule that was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleId(u64);

/// How often a rule has matched and struck.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleCounts {
    /// Requests that matched.
    pub matched: u64,
    /// Requests it struck.
    pub struck: u64,
}

/// How many requests of a kind came through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KindCounts {
    /// Requests.
    pub requests: u64,
    /// Those that were made to fail, short ones included.
    pub failed: u64,
    /// Those that were cut short.
    pub short: u64,
    /// Those that were delayed.
    pub delayed: u64,
}

struct Added {
    id: RuleId,
    rule: Rule,
    /// Its event has happened, or it waits for none.
    active: bool,
    counts: RuleCounts,
}

/// `set-state`.
struct Transition {
    event: DebugEvent,
    from: Option<u64>,
    to: u64,
}

struct State {
    rules: Vec<Added>,
    transitions: Vec<Transition>,
    state: u64,
    next_id: u64,
    kinds: [KindCounts; RequestKind::COUNT],
    random: fastrand::Rng,
}

/// Rules, in order: the first that strikes decides what happens to a request. A handle: clones are
/// the same rules. Any thread; can be changed while requests run.
#[derive(Clone)]
pub struct Rules {
    state: Arc<Mutex<State>>,
}

impl Rules {
    /// No rules. Chance is drawn from `seed`: the same requests in the same order fare the same.
    pub fn new(seed: u64) -> Rules {
        let state = State {
            rules: Vec::new(),
            transitions: Vec::new(),
            state: FIRST_STATE,
            next_id: 0,
            kinds: [KindCounts::default(); RequestKind::COUNT],
            random: fastrand::Rng::with_seed(seed),
        };
        Rules { state: Arc::new(Mutex::new(state)) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a rule behind those that are there.
    pub fn add(&self, rule: Rule) -> RuleId {
        let mut state = self.lock();
        let id = RuleId(state.next_id);
        state.next_id += 1;
        let active = rule.event.is_none() && rule.state.is_none_or(|it| it == state.state);
        state.rules.push(Added { id, rule, active, counts: RuleCounts::default() });
        id
    }

    /// When `event` happens, and the state is `from` or it does not matter, it is `to` afterwards. At
    /// first it is 1.
    pub fn set_state_when(&self, event: DebugEvent, from: Option<u64>, to: u64) {
        self.lock().transitions.push(Transition { event, from, to });
    }

    /// An event happens: rules that wait for it take effect instead of those that have it now.
    pub(super) fn reach(&self, event: DebugEvent) {
        let mut state = self.lock();
        let State { rules, transitions, state: now, .. } = &mut *state;
        let is_now = |wanted: Option<u64>| wanted.is_none_or(|it| it == *now);
        let begins = |rule: &Rule| rule.event == Some(event) && is_now(rule.state);
        if rules.iter().any(|added| begins(&added.rule)) {
            rules.iter_mut().for_each(|added| added.active = begins(&added.rule));
        }
        let last = transitions.iter().rfind(|it| it.event == event && is_now(it.from));
        *now = last.map_or(*now, |it| it.to);
    }

    /// Removes a rule; false if it is not there any more.
    pub fn remove(&self, id: RuleId) -> bool {
        let mut state = self.lock();
        let before = state.rules.len();
        state.rules.retain(|added| added.id != id);
        state.rules.len() < before
    }

    /// Removes all rules, and what changes the state.
    pub fn clear(&self) {
        let mut state = self.lock();
        state.rules.clear();
        state.transitions.clear();
    }

    /// How often a rule has matched and struck; `None` if it was removed.
    pub fn rule_counts(&self, id: RuleId) -> Option<RuleCounts> {
        self.lock().rules.iter().find(|added| added.id == id).map(|added| added.counts)
    }

    /// How many requests of one kind came through.
    pub fn kind_counts(&self, kind: RequestKind) -> KindCounts {
        self.lock().kinds[kind.index()]
    }

    /// What happens to this request.
    pub(super) fn judge(&self, kind: RequestKind, range: &Range<u64>) -> Strike {
        let mut state = self.lock();
        let State { rules, kinds, random, .. } = &mut *state;
        let mut decided: Option<Strike> = None;
        for added in rules.iter_mut().filter(|it| it.active && it.rule.matches(kind, range)) {
            added.counts.matched += 1;
            let spent = added.rule.times.is_some_and(|times| added.counts.struck >= times);
            if decided.is_some() || spent || added.counts.matched < added.rule.nth {
                continue;
            }
            if added.rule.probability.is_none_or(|probability| random.f64() < probability) {
                added.counts.struck += 1;
                decided = Some(added.rule.strike.clone());
            }
        }
        let strike = decided.unwrap_or_default();
        let counts = &mut kinds[kind.index()];
        counts.requests += 1;
        counts.failed += u64::from(strike.errno.is_some());
        counts.short += u64::from(strike.short_bytes.is_some());
        counts.delayed += u64::from(strike.delay.is_some());
        strike
    }
}
