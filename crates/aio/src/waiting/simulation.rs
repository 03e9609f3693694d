//! The rule in virtual time, against recorded ways of waiting.

use super::rule::WaitRule;
use super::wake_cost::WakeCost;

/// CPU time of a request, and of a sleep: the system call and two switches.
const SERVICE_NS: u64 = 5_000;
const SLEEP_CPU_NS: u64 = 5_000;

/// One thread that waits and serves.
struct Server {
    rule: WaitRule,
    cost: WakeCost,
    now_ns: u64,
    cpu_ns: u64,
    looked: u32,
    slept: u32,
}

impl Server {
    fn new(cost_ns: u64) -> Server {
        Server {
            rule: WaitRule::new(),
            cost: WakeCost::of(cost_ns),
            now_ns: 0,
            cpu_ns: 0,
            looked: 0,
            slept: 0,
        }
    }

    /// Waits for what comes at that time, and serves it. `spins` false: without looking. What is on the
    /// `same_cpu` cannot come while the thread looks.
    fn serve(&mut self, comes_ns: u64, spins: bool, same_cpu: bool) {
        if comes_ns > self.now_ns {
            let start_ns = self.now_ns;
            let limit_ns = if spins { self.rule.limit_ns(&self.cost) } else { 0 };
            if !same_cpu && comes_ns - start_ns <= limit_ns {
                self.now_ns = comes_ns;
                self.cpu_ns += comes_ns - start_ns;
                self.looked += 1;
                self.rule.found(self.now_ns - start_ns, &self.cost);
            } else {
                let late_ns = if same_cpu { limit_ns } else { 0 };
                self.now_ns = comes_ns + late_ns + self.cost.ns();
                self.cpu_ns += limit_ns + SLEEP_CPU_NS;
                self.slept += 1;
                self.rule.slept(limit_ns, self.now_ns - start_ns, &self.cost);
            }
        }
        self.now_ns += SERVICE_NS;
        self.cpu_ns += SERVICE_NS;
    }

    /// A client that asks again `think_ns` after each answer.
    fn serve_client(&mut self, think_ns: u64, requests: u32, same_cpu: bool) -> &mut Server {
        (self.looked, self.slept, self.cpu_ns) = (0, 0, 0);
        for _ in 0..requests {
            self.serve(self.now_ns + think_ns, true, same_cpu);
        }
        self
    }
}

/// Numbers that look random, the same in each run.
fn random(state: &mut u64) -> f64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 11) as f64 / (1u64 << 53) as f64
}

/// CPU time of requests that come at that mean interval, whatever the server does, evenly or at random.
fn cpu_at_rate(cost_ns: u64, interval_ns: u64, spins: bool, evenly: bool) -> u64 {
    let (mut server, mut comes_ns, mut seed) = (Server::new(cost_ns), 0, 1);
    for _ in 0..100_000 {
        let factor = if evenly { 1.0 } else { -(1.0 - random(&mut seed)).ln() };
        comes_ns += (interval_ns as f64 * factor) as u64;
        server.serve(comes_ns, spins, false);
    }
    server.cpu_ns
}

#[test]
fn c46_a_slept_wait_does_not_keep_the_door_shut() {
    let mut server = Server::new(30_000);
    // A night, then a client that needs 30 us from an answer to the next request.
    server.serve_client(1_000_000_000, 20, false);
    assert_eq!(server.slept, 20);
    server.serve_client(30_000, 40, false);
    assert!(server.looked > 20, "{} of 40", server.looked);
    server.serve_client(30_000, 100, false);
    assert_eq!((server.looked, server.slept), (100, 0), "and now it stays open");
}

#[test]
fn c46_there_is_one_steady_state_and_not_two() {
    // As recorded: clients that themselves sleep until they are answered.
    for cost_ns in [20_000, 30_000, 45_000] {
        for think_ns in [2_000, 10_000, 20_000, cost_ns, cost_ns + 5_000] {
            let mut open = Server::new(cost_ns);
            open.serve_client(1_000, 1000, false);
            let mut shut = Server::new(cost_ns);
            shut.serve_client(1_000_000_000, 1000, false);
            for server in [&mut open, &mut shut] {
                server.serve_client(think_ns, 100, false);
                server.serve_client(think_ns, 1000, false);
            }
            assert_eq!((open.looked, shut.looked), (1000, 1000), "{cost_ns} {think_ns}");
        }
        // And such as do not pay, whichever way it begins.
        let mut server = Server::new(cost_ns);
        server.serve_client(1_000, 1000, false);
        server.serve_client(3 * cost_ns, 100, false);
        server.serve_client(3 * cost_ns, 1000, false);
        assert_eq!((server.looked, server.slept), (0, 1000));
        assert_eq!(server.cpu_ns, 1000 * (SERVICE_NS + SLEEP_CPU_NS), "not even for a while");
    }
}

#[test]
fn c46_slow_rates_cost_what_sleeping_costs() {
    for cost_ns in [8_000, 20_000, 30_000, 45_000] {
        for interval_ns in [1_000_000, 100_000] {
            for evenly in [true, false] {
                let slept = cpu_at_rate(cost_ns, interval_ns, false, evenly) as f64;
                let ours = cpu_at_rate(cost_ns, interval_ns, true, evenly) as f64;
                let ratio = ours / slept;
                assert!(ratio < 1.15, "{ratio:.3} at {interval_ns} ns, {cost_ns} ns a wake-up");
            }
        }
    }
}

#[test]
fn a_thread_that_starves_the_other_side_by_looking_rests() {
    let mut server = Server::new(30_000);
    server.serve_client(10_000, 10_000, true);
    let looking_ns = server.cpu_ns - 10_000 * (SERVICE_NS + SLEEP_CPU_NS);
    assert!(looking_ns / 10_000 < 500, "{} ns a request", looking_ns / 10_000);
    // The other side moves to a CPU of its own.
    server.serve_client(10_000, 2_000, false);
    assert!(server.looked > 900, "{}", server.looked);
}

#[test]
fn c46_one_long_wait_in_five_does_not_end_the_looking() {
    let (mut server, mut seed) = (Server::new(30_000), 1);
    for _ in 0..100_000 {
        // A client whose CPU others need, too.
        let think_ns = if random(&mut seed) < 0.2 { 80_000 } else { 12_000 };
        server.serve(server.now_ns + think_ns, true, false);
    }
    assert!(server.looked > 70_000, "{} of 80,000", server.looked);
}
