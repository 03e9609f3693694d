//! Very many suspended coroutines: time, memory and mappings of each.
//!
//! Done in a child, so that its memory is its own: nothing has warmed it up, and when the kernel
//! kills it for want of memory only a row is lost.

use std::io;
use std::process::Command;
use std::time::Instant;

use coblk::coroutine::Coroutine;
use serde_json::{Value, json};

use crate::measure::Plan;
use crate::report::Row;
use crate::sys;
use crate::works::Work;

/// What a coroutine may need in the worst case: its page, its share of page tables, its control
/// block.
const RESERVE_BYTES_EACH: u64 = 8 << 10;
/// How many a quick run makes at most.
const QUICK_COUNT: u64 = 1000;

/// Measures `count` coroutines, or fewer when memory is short.
pub fn rows(count: u64, plan: &Plan) -> io::Result<Vec<Row>> {
    let asked = if plan.quick { count.min(QUICK_COUNT) } else { count };
    let fits = sys::memory_available()? * 3 / 4 / RESERVE_BYTES_EACH;
    let count = asked.min(fits).max(1);
    let mut notes = Vec::new();
    if count < asked {
        notes.push(format!("memory is short: {count} coroutines instead of {asked}"));
    }
    let output = Command::new(std::env::current_exe()?)
        .args(["child", "suspended", &count.to_string()])
        .output()?;
    let said: Option<Value> = serde_json::from_slice(&output.stdout).ok();
    let figure = |name: &str| said.as_ref()?.get(name)?.as_f64();
    let made = figure("made").filter(|made| *made > 0.0);
    if made.is_none() {
        let error = String::from_utf8_lossy(&output.stderr);
        notes.push(format!("the child ended with {}: {}", output.status, error.trim()));
    }
    if let Some(error) = said.as_ref().and_then(|said| said.get("error")?.as_str()) {
        notes.push(format!("stopped at {} of {count}: {error}", made.unwrap_or(0.0)));
    }
    let row = |work: Work, ours: Option<f64>| {
        let mut row = Row::new(work.name(), work.unit());
        row.ours = ours;
        row.more.extend(made.map(|made| ("coroutines", made)));
        row
    };
    let each = |name| Some(figure(name)? / made?);
    let mut time = row(Work::SuspendedTime, each("ns"));
    time.notes = notes;
    let mut memory = row(Work::SuspendedMemory, each("resident_bytes"));
    memory.more.extend(each("page_table_bytes").map(|bytes| ("page_table_bytes_each", bytes)));
    memory.more.extend(each("heap_bytes").map(|bytes| ("heap_bytes_each", bytes)));
    Ok(vec![time, memory, row(Work::SuspendedMappings, figure("mappings"))])
}

/// Suspends `count` coroutines and prints what that took, as JSON.
///
/// # Errors
/// If the kernel does not tell.
pub fn child(count: u64) -> io::Result<()> {
    let mut all = Vec::with_capacity(count as usize);
    // The list's own pages are no coroutine's.
    all.resize_with(count as usize, || None);
    all.clear();
    let before = Use::now()?;
    let start = Instant::now();
    let mut error = None;
    for _ in 0..count {
        match Coroutine::try_new("bench", |suspender| suspender.suspend()) {
            Ok(coroutine) => {
                coroutine.resume();
                all.push(Some(coroutine));
            }
            Err(this) => {
                error = Some(this.to_string());
                break;
            }
        }
    }
    let ns = start.elapsed().as_nanos() as f64;
    let made = all.len();
    if error.is_some() {
        // Room to read the mappings.
        all.truncate(made - made.min(16));
    }
    let after = Use::now()?;
    let mut said = json!({
        "made": made,
        "ns": ns,
        "resident_bytes": after.resident.saturating_sub(before.resident),
        "page_table_bytes": after.page_tables.saturating_sub(before.page_tables),
        "heap_bytes": after.heap.saturating_sub(before.heap),
        "mappings": sys::mappings()?,
    });
    if let Some(error) = error {
        said["error"] = json!(error);
    }
    println!("{said}");
    // To unwind them all would take longer than to make them, and the kernel frees everything
    // anyway.
    std::process::exit(0)
}

struct Use {
    resident: u64,
    page_tables: u64,
    heap: u64,
}

impl Use {
    fn now() -> io::Result<Use> {
        Ok(Use {
            resident: sys::status_bytes("VmRSS")?,
            page_tables: sys::status_bytes("VmPTE")?,
            heap: crate::alloc::allocated_bytes(),
        })
    }
}
