//! The gdb helper of `docs/debugging.md`: it lists coroutines, shows where each of them is, and
//! leaves the process as it was.
//!
//! The program that gdb looks at is this one, run once more, with coroutines that wait in functions
//! whose names are known. It stops where it calls [`curtain`], so no clock is involved.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::sync::mpsc;

use coblk::aio::AioContextBuilder;
use coblk::coroutine::{GuardKind, StackConfig, configure_stacks};
use coblk::{AioContext, Co, CoWaker, IoThread, ThreadPool};
use coblk_tests::{image_dir, tools};

/// Set for the program inside gdb.
const INSIDE: &str = "COBLK_TEST_INSIDE_GDB";

const REGISTERS: &str = "info registers rip rsp rbp rbx";

/// In which order frames of the coroutine "flusher" follow each other, others between them.
const FLUSHER: [&str; 3] = ["suspend", "waits_for_flush", "writes_back"];

type Slot = Rc<Cell<Option<CoWaker>>>;

/// Where gdb stops the program: everybody waits.
#[inline(never)]
fn curtain(co: &Co<'_>) -> usize {
    std::hint::black_box(co.name().len())
}

#[inline(never)]
fn writes_back(co: &Co<'_>, slot: &Slot) -> usize {
    let dirty_blocks = std::hint::black_box(3_usize);
    dirty_blocks + waits_for_flush(co, slot)
}

#[inline(never)]
fn waits_for_flush(co: &Co<'_>, slot: &Slot) -> usize {
    co.suspend_for("a flush", |waker| slot.set(Some(waker)));
    std::hint::black_box(4)
}

#[inline(never)]
fn reads_header(co: &Co<'_>, wait_for_cue: mpsc::Receiver<()>) -> usize {
    let bytes = co.context().thread_pool().submit_co(co, move || wait_for_cue.recv().map(|()| 512));
    std::hint::black_box(bytes.expect("a cue"))
}

#[inline(never)]
fn reads_command(co: &Co<'_>, command: coblk::JoinHandle<usize>) -> usize {
    std::hint::black_box(co.block_on(command).expect("a command")) + 1
}

#[inline(never)]
fn conducts(co: &Co<'_>) -> usize {
    std::hint::black_box(curtain(co)) + 1
}

/// What gdb looks at. Ends well only if nothing was disturbed.
fn play() {
    // gdb writes no core of memory that is guarded by markers, unlike the kernel.
    let stacks = StackConfig::new(256 << 10).guard(GuardKind::Mapping);
    configure_stacks(stacks).expect("no stacks yet");
    let build = |name: &str| -> AioContextBuilder {
        AioContext::test_builder().name(name).thread_pool(ThreadPool::new(1, 1).expect("a pool"))
    };
    let ctx = build("main loop").build().expect("a context");
    let io_thread = IoThread::with_builder("iothread0", AioContext::builder()).expect("a thread");

    let total = Rc::new(Cell::new(0));
    let add = |what: &Rc<Cell<usize>>, bytes| what.set(what.get() + bytes);
    let (slot, sum) = (Slot::default(), Rc::clone(&total));
    let own = Rc::clone(&slot);
    ctx.spawn("flusher", move |co| add(&sum, writes_back(co, &own)));
    let (cue, wait_for_cue) = mpsc::channel();
    let sum = Rc::clone(&total);
    ctx.spawn("opener", move |co| add(&sum, reads_header(co, wait_for_cue)));

    // A coroutine of another thread waits for one of this context, which has not run yet. What is
    // scheduled there next runs when that one has suspended.
    let command = ctx.handle().spawn("command", |_| 6);
    let client = io_thread.handle().spawn("client", move |co| reads_command(co, command));
    let (ready, all_wait) = mpsc::channel();
    io_thread.handle().schedule(move |_| ready.send(()).expect("somebody waits"));
    all_wait.recv().expect("the thread runs");

    let sum = Rc::clone(&total);
    ctx.spawn("conductor", move |co| add(&sum, conducts(co)));

    cue.send(()).expect("the worker waits");
    slot.take().expect("the flusher waits").wake();
    ctx.run_until(|| total.get() == 7 + 512 + 10);
    assert_eq!(ctx.run(|co| co.block_on(client)), Ok(7));
    println!("the play is over, and went well");
}

/// Runs gdb, with the helper loaded; each command is one of gdb's.
fn gdb(commands: &[&str], arguments: &[&str]) -> String {
    let helper = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/gdb/coblk.py");
    let load = format!("source {}", tools::text(&helper));
    let settings = [
        "set debuginfod enabled off",
        // Needs a right that a container may lack.
        "set disable-randomization off",
        // Stacks come in chunks as large as there is address space for, and gdb, unlike the kernel,
        // writes all of it to a core.
        "set exec-wrapper prlimit --as=100000000",
        "set environment MALLOC_ARENA_MAX 1",
        &load,
    ];
    let mut gdb = tools::command("gdb");
    gdb.args(["-nx", "-batch"]).env(INSIDE, "1").env("SHELL", "/bin/sh");
    for command in settings.iter().chain(commands) {
        gdb.args(["-ex", command]);
    }
    let said = tools::expect_success("gdb", &tools::finish("gdb", gdb.args(arguments)));
    println!("{said}");
    said
}

/// The lines of one coroutine's backtrace.
fn backtrace<'a>(said: &'a str, name: &str) -> Vec<&'a str> {
    let title = |line: &&str| line.starts_with("coroutine ") && line.contains(&format!("'{name}'"));
    let lines = said.lines().skip_while(|line| !title(line));
    let block = |line: &&str| line.starts_with('#') || line.starts_with(' ');
    let head = lines.clone().take(1);
    head.chain(lines.skip(1).take_while(block)).collect()
}

/// Asserts that frames of these functions follow each other in a backtrace, others between them.
#[track_caller]
fn assert_calls(said: &str, name: &str, title: &str, functions: &[&str]) {
    let lines = backtrace(said, name);
    assert!(lines.first().is_some_and(|line| line.contains(title)), "{name}: {lines:#?}");
    let mut rest = lines.iter().filter(|line| line.starts_with('#'));
    for function in functions {
        assert!(rest.any(|line| line.contains(function)), "{name}, {function}: {lines:#?}");
    }
}

/// What both a live process and its core must show.
#[track_caller]
fn assert_scene(said: &str) {
    for expected in ["context 'main loop': 3 coroutines\n", "context 'iothread0': 1 coroutine\n"] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    let listed = [
        ["suspended", "flusher", "a flush"],
        ["suspended", "opener", "a worker"],
        ["suspended", "client", "a future"],
        ["entered", "conductor", ""],
    ];
    for words in listed {
        let line = said.lines().find(|line| words.iter().all(|word| line.contains(word)));
        assert!(line.is_some(), "{words:?}: {said}");
    }
    assert_calls(said, "flusher", "suspended, waits for a flush", &FLUSHER);
    let opener = ["submit_co", "reads_header"];
    assert_calls(said, "opener", "suspended, waits for a worker", &opener);
    let client = ["block_on", "reads_command"];
    assert_calls(said, "client", "suspended, waits for a future", &client);
    assert_calls(said, "conductor", "entered, in thread", &["curtain", "conducts"]);
}

#[test]
fn gdb_shows_where_coroutines_are_and_leaves_the_process_as_it_was() {
    if std::env::var_os(INSIDE).is_some() {
        return play();
    }
    let dir = image_dir!();
    let core = dir.path().join("core");
    let program = std::env::current_exe().expect("the path of this test program");
    let test = "gdb_shows_where_coroutines_are_and_leaves_the_process_as_it_was";
    let commands = [
        "break debugging::curtain",
        "break curtain",
        "run",
        REGISTERS,
        "coblk coroutines",
        "coblk bt all",
        "python import re; listing = gdb.execute('coblk coroutines', to_string=True)",
        "echo by address\\n",
        "python gdb.execute('coblk bt ' + re.search('flusher.*(0x.*)', listing)[1])",
        "echo by id\\n",
        "python gdb.execute('coblk apply ' + re.search('([0-9]+) .*opener', listing)[1] + ' bt')",
        REGISTERS,
        "bt 1",
        &format!("generate-core-file {}", tools::text(&core)),
        "continue",
    ];
    let program = tools::text(&program);
    let said = gdb(&commands, &["--args", program, "--exact", test, "--nocapture"]);
    assert_scene(&said);
    let (_, by_address) = said.split_once("by address").expect("an echo");
    let (by_address, by_id) = by_address.split_once("by id").expect("an echo");
    assert_calls(by_address, "flusher", "suspended, waits for a flush", &FLUSHER);
    assert!(by_id.contains("reads_header "), "{by_id}");

    // Registers, and the selected frame, are what they were before.
    let values = said.lines().filter(|line| line.starts_with('r') && line.contains(" 0x"));
    let values: Vec<&str> = values.collect();
    let (before, after) = values.split_at(values.len() / 2);
    assert_eq!((before.len(), before), (4, after));
    assert!(
        by_id.lines().any(|line| line.starts_with("#0 ") && line.contains("curtain (")),
        "{by_id}"
    );
    // And the program goes on to its good end.
    assert!(said.contains("the play is over, and went well"), "{said}");
    assert!(said.contains("exited normally"), "{said}");

    let said = gdb(&["coblk coroutines", "coblk bt all"], &[program, tools::text(&core)]);
    assert_scene(&said);
}
