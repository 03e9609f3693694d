//! What a program does with files and syncs, and what it may count on after a loss of power.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use coblk_tests::random::Random;

/// Files that come, grow, are replaced and go.
const FILES: u64 = 12;
const LONGEST: u64 = 24 << 10;

/// What is in a file; `None` if there is none.
type Content = Option<Vec<u8>>;

/// What was done to one file, and made durable.
pub struct Change {
    file: String,
    kind: Kind,
    before: Content,
    after: Content,
    /// What the log counted before it began: nothing of it is among those entries.
    begun: usize,
    /// What the log counted when all was acknowledged: all of it is among those entries.
    acknowledged: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A new file, filled.
    Create,
    /// More at the end.
    Append,
    /// Another file moved to its place, the usual way to change a file as a whole.
    Replace,
    Remove,
}

/// Changes files in `dir` at random, `count` times, and syncs each; `log_entries` says what the log
/// counts. Other files are changed besides, without a sync.
pub fn change_files(
    dir: &Path,
    random: &mut Random,
    count: usize,
    log_entries: impl Fn() -> usize,
) -> io::Result<Vec<Change>> {
    let mut changes: Vec<Change> = Vec::new();
    for _ in 0..count {
        let file = format!("file{}", random.below(FILES));
        let known = changes.iter().rev().find(|change| change.file == file);
        let before = known.and_then(|change| change.after.clone());
        let kind = match (&before, random.below(4)) {
            (None, _) => Kind::Create,
            (_, 0) => Kind::Remove,
            (_, 1) => Kind::Append,
            _ => Kind::Replace,
        };
        let mut data = vec![0; 1 + random.below(LONGEST) as usize];
        random.fill(&mut data);
        let after = match kind {
            Kind::Create | Kind::Replace => Some(data.clone()),
            Kind::Append => Some([before.as_deref().unwrap_or_default(), &data].concat()),
            Kind::Remove => None,
        };
        let begun = log_entries();
        make(dir, &dir.join(&file), kind, &data)?;
        let acknowledged = log_entries();
        changes.push(Change { file, kind, before, after, begun, acknowledged });
        fs::write(dir.join(format!("unsynced{}", random.below(FILES))), &data)?;
    }
    Ok(changes)
}

fn make(dir: &Path, path: &Path, kind: Kind, data: &[u8]) -> io::Result<()> {
    let fill = |path: &Path, append: bool| {
        let mut options = File::options();
        let mut file = options.create(!append).write(true).append(append).open(path)?;
        file.write_all(data)?;
        file.sync_data()
    };
    match kind {
        Kind::Append => return fill(path, true),
        Kind::Create => fill(path, false)?,
        Kind::Replace => {
            let new = dir.join("new");
            fill(&new, false)?;
            fs::rename(new, path)?;
        }
        Kind::Remove => fs::remove_file(path)?,
    }
    File::open(dir)?.sync_all()
}

/// Every file in `dir` is as it may be when the log ended after `entries`.
///
/// # Errors
/// Names a file that is not.
pub fn verify(dir: &Path, changes: &[Change], entries: usize) -> Result<(), String> {
    for number in 0..FILES {
        let file = format!("file{number}");
        let found = fs::read(dir.join(&file)).ok();
        let mut of_file = changes.iter().filter(|change| change.file == file);
        let done = of_file.clone().take_while(|it| it.acknowledged <= entries).last();
        let next = of_file.find(|it| it.acknowledged > entries);
        let acknowledged = done.and_then(|change| change.after.as_ref());
        let under_way = next.filter(|change| change.begun <= entries);
        if found.as_ref() != acknowledged && !under_way.is_some_and(|it| it.allows(&found)) {
            let said = |content: Option<&Vec<u8>>| {
                content.map_or("none".to_owned(), |content| format!("{} bytes", content.len()))
            };
            let (is, kind) = (said(found.as_ref()), done.map(|change| change.kind));
            let should = said(acknowledged);
            return Err(format!("{file} is {is}, acknowledged {should} by {kind:?}"));
        }
    }
    Ok(())
}

impl Change {
    /// What there may be while it is under way.
    fn allows(&self, found: &Content) -> bool {
        match (self.kind, found) {
            // A new file may have anything in it until it is synced.
            (Kind::Create, _) => true,
            (Kind::Append, Some(found)) => {
                found.starts_with(self.before.as_deref().unwrap_or_default())
            }
            _ => *found == self.before || *found == self.after,
        }
    }
}
