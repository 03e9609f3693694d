//! The block servers that are compared, and their command lines.
//!
//! Ours takes the command line of qemu-storage-daemon, so both are told the same. Our examples can be
//! measured too; they have words of their own.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;

use crate::engine::Engine;
use crate::floors::Wait;

/// Length of the null device.
pub const NULL_BYTES: u64 = 1 << 30;
/// What an export is called, where it has a name.
const EXPORT: &str = "disk";

/// How clients talk to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// NBD.
    Nbd,
    /// vhost-user-blk.
    VhostUser,
}

impl Protocol {
    /// Its name, in rows.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Nbd => "nbd",
            Protocol::VhostUser => "vhost-user",
        }
    }

    /// The example that serves it.
    fn example(self) -> &'static str {
        match self {
            Protocol::Nbd => "nbd_export",
            Protocol::VhostUser => "vhost_user_blk",
        }
    }
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(word: &str) -> Result<Protocol, String> {
        let all = [Protocol::Nbd, Protocol::VhostUser];
        let found = all.into_iter().find(|protocol| protocol.name() == word);
        found.ok_or_else(|| format!("'{word}' is neither nbd nor vhost-user"))
    }
}

/// What a server is to serve, and where.
#[derive(Clone, Copy, Debug)]
pub struct Service<'a> {
    /// How.
    pub protocol: Protocol,
    /// The image; a null device without one.
    pub image: Option<&'a Path>,
    /// What does the I/O, where the server has a choice.
    pub engine: Engine,
    /// Queues of a vhost-user device.
    pub queues: usize,
    /// Iothreads that serve an NBD export; the main thread if 0.
    pub iothreads: usize,
    /// The unix socket.
    pub socket: &'a Path,
}

/// A program that serves blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Program {
    /// Our daemon, or another that takes the same words.
    Daemon(PathBuf),
    /// One of our examples.
    Example(PathBuf),
    /// QEMU's.
    QemuStorageDaemon,
    /// nbdkit.
    Nbdkit,
    /// The floor: this program, as `serve`.
    Bare(Protocol, Wait),
}

impl Program {
    /// Ours: what `--server` names, or what lies beside this program.
    ///
    /// # Errors
    /// If there is none; with the command that builds it.
    pub fn ours(named: Option<&Path>, protocol: Protocol) -> io::Result<Program> {
        if let Some(path) = named {
            let is_example = path.file_name().is_some_and(|name| name == protocol.example());
            let path = path.to_owned();
            return Ok(if is_example { Program::Example(path) } else { Program::Daemon(path) });
        }
        beside("coblk-storage-daemon", "name a server with --server").map(Program::Daemon)
    }

    /// What rows call it, and the Debian package that brings it.
    pub fn name(&self) -> (&'static str, &'static str) {
        match self {
            Program::Daemon(_) | Program::Example(_) => ("coblk", ""),
            Program::QemuStorageDaemon => {
                ("qemu-storage-daemon", "qemu-system-common or qemu-utils")
            }
            Program::Nbdkit => ("nbdkit", "nbdkit"),
            Program::Bare(Protocol::Nbd, Wait::Spinning) => ("bare nbd, spinning", ""),
            Program::Bare(Protocol::Nbd, Wait::Blocking) => ("bare nbd, blocking", ""),
            Program::Bare(Protocol::VhostUser, Wait::Spinning) => ("bare virtqueue, spinning", ""),
            Program::Bare(Protocol::VhostUser, Wait::Blocking) => ("bare virtqueue, blocking", ""),
        }
    }

    /// The name of its export.
    pub fn export(&self) -> &'static str {
        match self {
            Program::Example(_) => "",
            _ => EXPORT,
        }
    }

    /// Whether it keeps a CPU busy while it has no work.
    pub fn spins(&self) -> bool {
        matches!(self, Program::Bare(_, Wait::Spinning))
    }

    /// Whether it is installed.
    pub fn is_installed(&self) -> bool {
        let mut command = match self {
            Program::Daemon(path) | Program::Example(path) => return path.exists(),
            Program::Bare(..) => return true,
            Program::QemuStorageDaemon | Program::Nbdkit => Command::new(self.path()),
        };
        let answer = command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        answer.is_ok()
    }

    /// Where it is, or the name to look for.
    pub fn path(&self) -> &Path {
        match self {
            Program::Daemon(path) | Program::Example(path) => path,
            Program::QemuStorageDaemon => Path::new("qemu-storage-daemon"),
            Program::Nbdkit => Path::new("nbdkit"),
            // As long as it runs, the kernel knows it by this name too.
            Program::Bare(..) => Path::new("/proc/self/exe"),
        }
    }

    /// The command that serves.
    ///
    /// # Errors
    /// If it cannot serve that, or a path is not UTF-8.
    pub fn command(&self, service: &Service<'_>) -> io::Result<Command> {
        let mut command = Command::new(self.path());
        match self {
            Program::Daemon(_) => command.args(qemu_words(service, service.iothreads)?),
            // Its NBD exports take one.
            Program::QemuStorageDaemon => {
                command.args(qemu_words(service, service.iothreads.min(1))?)
            }
            Program::Example(_) => command.args(example_words(service)?),
            Program::Nbdkit => command.args(nbdkit_words(service)?),
            Program::Bare(_, wait) => command.args(bare_words(service, *wait)?),
        };
        Ok(command)
    }
}

/// A program of ours, beside this one.
///
/// # Errors
/// If it is not there; with what to do.
pub fn beside(name: &str, otherwise: &str) -> io::Result<PathBuf> {
    let here = std::env::current_exe()?;
    let path = here.parent().unwrap_or(Path::new(".")).join(name);
    if path.exists() {
        return Ok(path);
    }
    let shown = path.display();
    let message =
        format!("{shown} is not there; {otherwise}, or build it: cargo build --release -p {name}");
    Err(io::Error::new(io::ErrorKind::NotFound, message))
}

fn qemu_words(service: &Service<'_>, iothreads: usize) -> io::Result<Vec<String>> {
    let mut words = Vec::new();
    let mut add = |option: &str, value: String| words.extend([option.to_owned(), value]);
    (0..iothreads).for_each(|number| add("--object", format!("iothread,id=t{number}")));
    let threads = match iothreads {
        0 => String::new(),
        1 => ",iothread=t0".to_owned(),
        more => (0..more).map(|number| format!(",iothread.{number}=t{number}")).collect(),
    };
    match service.image {
        None => add(
            "--blockdev",
            format!("driver=null-co,node-name=d,size={NULL_BYTES},read-zeroes=off"),
        ),
        Some(image) => {
            // Several servers have the image open at once.
            let how = format!("aio={},cache.direct=off,locking=off", service.engine.name());
            let image = escaped(image)?;
            add("--blockdev", format!("driver=file,node-name=f,filename={image},{how}"));
            add("--blockdev", "driver=raw,node-name=d,file=f".to_owned());
        }
    }
    let socket = escaped(service.socket)?;
    match service.protocol {
        Protocol::Nbd => {
            add("--nbd-server", format!("addr.type=unix,addr.path={socket}"));
            add(
                "--export",
                format!("type=nbd,id=e,node-name=d,name={EXPORT},writable=on{threads}"),
            );
        }
        Protocol::VhostUser => {
            let export = "type=vhost-user-blk,id=e,node-name=d,writable=on";
            let at = format!("addr.type=unix,addr.path={socket},num-queues={}", service.queues);
            add("--export", format!("{export},{at}"));
        }
    }
    Ok(words)
}

fn example_words(service: &Service<'_>) -> io::Result<Vec<String>> {
    let socket = utf8(service.socket)?.to_owned();
    let image = service.image.map(utf8).transpose()?.map(str::to_owned);
    match (service.protocol, image) {
        (Protocol::Nbd, image) => Ok([Some(socket), image].into_iter().flatten().collect()),
        (Protocol::VhostUser, image) => {
            let image = image.unwrap_or("null".to_owned());
            Ok(vec![image, socket, service.queues.to_string()])
        }
    }
}

fn nbdkit_words(service: &Service<'_>) -> io::Result<Vec<String>> {
    let socket = utf8(service.socket)?;
    let mut words: Vec<String> = ["--foreground", "--unix", socket].map(str::to_owned).into();
    match service.image {
        None => words.extend(["null".to_owned(), NULL_BYTES.to_string()]),
        Some(image) => words.extend(["file".to_owned(), format!("file={}", utf8(image)?)]),
    }
    Ok(words)
}

fn bare_words(service: &Service<'_>, wait: Wait) -> io::Result<Vec<String>> {
    let protocol = service.protocol.name();
    let mut words =
        vec!["serve", protocol, "--wait", wait.name(), "--socket", utf8(service.socket)?];
    if let Some(image) = service.image {
        words.extend(["--filename", utf8(image)?]);
    }
    let queues = service.queues.to_string();
    words.extend(["--queues", &queues]);
    Ok(words.into_iter().map(str::to_owned).collect())
}

/// A path as a value among others: a comma stands doubled.
fn escaped(path: &Path) -> io::Result<String> {
    Ok(utf8(path)?.replace(',', ",,"))
}

fn utf8(path: &Path) -> io::Result<&str> {
    path.to_str().ok_or_else(|| io::Error::other(format!("{} is not UTF-8", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(protocol: Protocol, image: Option<&'static str>) -> Service<'static> {
        let socket = Path::new("/tmp/s");
        let image = image.map(Path::new);
        Service { protocol, image, engine: Engine::IoUring, queues: 2, iothreads: 0, socket }
    }

    fn line(program: &Program, service: &Service<'_>) -> String {
        let command = program.command(service).unwrap();
        let words: Vec<_> = command.get_args().map(|word| word.to_str().unwrap()).collect();
        words.join(" ")
    }

    #[test]
    fn ours_is_told_what_qemu_is_told() {
        let ours = Program::Daemon("/bin/coblk-storage-daemon".into());
        for service in [service(Protocol::Nbd, None), service(Protocol::VhostUser, Some("a,b.img"))]
        {
            assert_eq!(line(&ours, &service), line(&Program::QemuStorageDaemon, &service));
        }
        let words = line(&ours, &service(Protocol::VhostUser, Some("a,b.img")));
        assert!(
            words.contains("filename=a,,b.img,aio=io_uring") && words.ends_with("num-queues=2")
        );
        let words = line(&ours, &service(Protocol::Nbd, None));
        assert!(words.contains("driver=null-co") && words.contains("read-zeroes=off"), "{words}");
    }

    #[test]
    fn qemu_has_one_iothread_for_an_export() {
        let service = Service { iothreads: 2, ..service(Protocol::Nbd, None) };
        let ours = line(&Program::Daemon("d".into()), &service);
        assert!(ours.contains("iothread,id=t1") && ours.ends_with(",iothread.0=t0,iothread.1=t1"));
        let qemu = line(&Program::QemuStorageDaemon, &service);
        assert!(!qemu.contains("id=t1") && qemu.ends_with(",iothread=t0"), "{qemu}");
    }

    #[test]
    fn others_have_words_of_their_own() {
        let image = service(Protocol::Nbd, Some("a.img"));
        let nbdkit = line(&Program::Nbdkit, &image);
        assert_eq!(nbdkit, "--foreground --unix /tmp/s file file=a.img");
        let example = Program::ours(Some(Path::new("x/nbd_export")), Protocol::Nbd).unwrap();
        assert_eq!(example, Program::Example("x/nbd_export".into()));
        assert_eq!(line(&example, &image), "/tmp/s a.img");
        assert_eq!(line(&example, &service(Protocol::Nbd, None)), "/tmp/s");
        let vhost_user = Program::Example("vhost_user_blk".into());
        assert_eq!(line(&vhost_user, &service(Protocol::VhostUser, None)), "null /tmp/s 2");
    }

    #[test]
    fn what_is_missing_is_named_with_how_to_build_it() {
        // Beside a test program there is no server.
        let error = Program::ours(None, Protocol::VhostUser).unwrap_err().to_string();
        assert!(error.contains("build --release -p coblk-storage-daemon"), "{error}");
        let daemon = Program::ours(Some(Path::new("/x/my-daemon")), Protocol::Nbd).unwrap();
        assert_eq!(daemon, Program::Daemon("/x/my-daemon".into()));
        assert!(!daemon.is_installed());
    }
}
