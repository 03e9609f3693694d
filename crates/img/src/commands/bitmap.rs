//! `bitmap`: dirty bitmaps that are stored in an image.

use std::ffi::OsString;

use clap::{Arg, ArgAction, ArgMatches};
use coblk::BlockNode;
use coblk::block::{BitmapError, NewBitmap};

use super::Tool;
use super::options::Objects;
use crate::failure::Failure;
use crate::image::{Image, ImageSpec};
use crate::size;

/// Add, remove and change the dirty bitmaps that an image has
#[derive(clap::Args, Debug)]
pub(crate) struct Bitmap {
    #[command(flatten)]
    actions: Actions,
    /// The image that has the bitmaps that are merged; the image itself without this
    #[arg(short = 'b', long = "source-file", value_name = "FILENAME")]
    source: Option<OsString>,
    /// The format of that image
    #[arg(short = 'F', long = "source-format", value_name = "FORMAT", requires = "source")]
    source_format: Option<String>,
    /// Bytes that a bit of a new bitmap stands for
    #[arg(short, long, value_name = "SIZE")]
    granularity: Option<String>,
    /// The format of the image; found by its first bytes without this
    #[arg(short = 'f', long, value_name = "FORMAT")]
    format: Option<String>,
    /// The name is a list of options of a node, such as driver=qcow2,file.filename=a.img
    #[arg(long, conflicts_with = "format")]
    image_opts: bool,
    #[command(flatten)]
    pub(crate) objects: Objects,
    /// The image
    filename: OsString,
    /// The name of the bitmap
    bitmap: String,
}

/// What is done with a bitmap.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    Add,
    Remove,
    Clear,
    Enable,
    Disable,
    Merge(String),
}

/// What is done, in the order of the command line.
#[derive(Clone, Debug)]
struct Actions(Vec<Action>);

/// Actions without a value: names, and what they do.
const PLAIN: [(&str, Action, &str); 5] = [
    ("add", Action::Add, "Add the bitmap, which records writes from now on"),
    ("remove", Action::Remove, "Remove it"),
    ("clear", Action::Clear, "Clear all its bits"),
    ("enable", Action::Enable, "Have it record writes"),
    ("disable", Action::Disable, "Have it record no writes"),
];
const MERGE: &str = "merge";

impl clap::FromArgMatches for Actions {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Actions, clap::Error> {
        let places = |name| matches.indices_of(name).into_iter().flatten();
        let plain = PLAIN
            .iter()
            .flat_map(|(name, action, _)| places(name).map(move |place| (place, action.clone())));
        let sources = matches.get_many::<String>(MERGE).into_iter().flatten();
        let merged = places(MERGE).zip(sources.map(|source| Action::Merge(source.clone())));
        let mut all: Vec<_> = plain.chain(merged).collect();
        all.sort_by_key(|(place, _)| *place);
        Ok(Actions(all.into_iter().map(|(_, action)| action).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Actions::from_arg_matches(matches)?;
        Ok(())
    }
}

impl clap::Args for Actions {
    fn augment_args(command: clap::Command) -> clap::Command {
        let merge = Arg::new(MERGE).long(MERGE).value_name("BITMAP").action(ArgAction::Append);
        let mut command = command.arg(merge.help("Mark what is dirty in this one, too"));
        for (name, _, help) in PLAIN {
            // Each time counts, with its place.
            let flag = Arg::new(name).long(name).help(help).action(ArgAction::Append).num_args(0);
            command = command.arg(flag.default_missing_value("on"));
        }
        command
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Actions::augment_args(command)
    }
}

impl Bitmap {
    pub(crate) fn co_run(&self, tool: &Tool<'_, '_>) -> Result<(), Failure> {
        let Actions(actions) = &self.actions;
        if actions.is_empty() {
            return Err(Failure::new(
                "Need at least one of --add, --remove, --clear, --enable, --disable, or --merge",
            ));
        }
        if self.granularity.is_some() && !actions.contains(&Action::Add) {
            return Err(Failure::new("granularity only supported with --add"));
        }
        if self.source.is_some() && !actions.iter().any(|it| matches!(it, Action::Merge(_))) {
            return Err(Failure::new("Merge bitmap source file only supported with --merge"));
        }
        let granularity = self.granularity.as_deref();
        let granularity = granularity.map(|it| size::parse("granularity", it)).transpose()?;
        let spec = ImageSpec {
            format: self.format.clone(),
            is_options: self.image_opts,
            is_writable: true,
            ..ImageSpec::new(self.filename.clone())
        };
        let image = tool.images.co_open(tool.co, &spec)?;
        let source = match &self.source {
            None => None,
            Some(name) => {
                let format = self.source_format.clone();
                let spec = ImageSpec { format, ..ImageSpec::new(name.clone()) };
                Some(tool.images.co_open(tool.co, &spec)?)
            }
        };
        let source = source.as_ref().unwrap_or(&image);
        for action in actions {
            let done = self.co_do(tool, &image, action, &source.node, granularity);
            done.map_err(|error| {
                let (bitmap, verb) = (&self.bitmap, action.name());
                Failure::new(format!("Operation {verb} on bitmap {bitmap} failed: {error}"))
            })?;
        }
        tool.images.co_close(tool.co, image)
    }

    fn co_do(
        &self,
        tool: &Tool<'_, '_>,
        image: &Image,
        action: &Action,
        source: &BlockNode,
        granularity: Option<u64>,
    ) -> Result<(), BitmapError> {
        let node = &image.node;
        let bitmap = || node.bitmaps().find(&self.bitmap);
        match action {
            Action::Add => {
                let granularity = granularity.unwrap_or_else(|| node.default_granularity());
                let mut new = NewBitmap::new(self.bitmap.clone(), granularity);
                new.is_persistent = true;
                node.co_add_bitmap(tool.co, new).map(drop)
            }
            Action::Remove => node.co_remove_bitmap(tool.co, &bitmap()?),
            Action::Clear => bitmap()?.clear(),
            Action::Enable => bitmap()?.set_recording(true),
            Action::Disable => bitmap()?.set_recording(false),
            Action::Merge(name) => bitmap()?.merge(&[source.bitmaps().find(name)?]),
        }
    }
}

impl Action {
    fn name(&self) -> &str {
        let plain = PLAIN.iter().find(|(_, action, _)| action == self);
        plain.map_or(MERGE, |(name, ..)| name)
    }
}

/// Copies the bitmaps that a source has to an image of which all else is copied.
///
/// # Errors
/// If one cannot be copied: those before it are there.
pub(super) fn co_copy_all(
    tool: &Tool<'_, '_>,
    source: &BlockNode,
    target: &Image,
) -> Result<(), Failure> {
    // In the order in which they were made.
    for bitmap in source.bitmaps().list().iter().rev() {
        let name = bitmap.name().unwrap_or_default();
        let failed = |error| Failure::new(format!("Failed to copy bitmap '{name}': {error}"));
        if bitmap.is_inconsistent() {
            eprintln!("coblk-img: warning: Skipping inconsistent bitmap '{name}'");
            continue;
        }
        let mut new = NewBitmap::new(name.clone(), bitmap.bits().granularity());
        (new.is_persistent, new.is_recording) = (true, bitmap.is_recording());
        let added = target.node.co_add_bitmap(tool.co, new).map_err(failed)?;
        added.merge(std::slice::from_ref(bitmap)).map_err(failed)?;
    }
    Ok(())
}

/// Checks before a copy that bitmaps can be copied.
///
/// # Errors
/// If a format stores none; if one is inconsistent, unless those are left out.
pub(super) fn check_copy(source: &Image, target: &str, skips_broken: bool) -> Result<(), Failure> {
    for format in [source.format(), target] {
        if format != "qcow2" {
            return Err(Failure::new(format!("Format '{format}' does not support bitmaps")));
        }
    }
    let bitmaps = source.node.bitmaps().list();
    match bitmaps.iter().find(|bitmap| bitmap.is_inconsistent()) {
        Some(broken) if !skips_broken => {
            let name = broken.name().unwrap_or_default();
            let hint = "use --skip-broken-bitmaps, or remove it";
            Err(Failure::new(format!("Cannot copy inconsistent bitmap '{name}': {hint}")))
        }
        _ => Ok(()),
    }
}
