//! [`Machine`]: a virtual machine that runs the guest.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::SocketAddr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use coblk_tests::tools;

/// Whatever takes the guest longer hangs. It boots in seconds, unless the machine is very busy.
const PATIENCE: Duration = Duration::from_secs(300);

/// A running guest of two processors. Killed with the value, if it was not
/// [powered off](Self::power_off).
pub struct Machine {
    qemu: Child,
    console: PathBuf,
    /// Where its first process takes commands.
    shell: BufReader<UnixStream>,
}

impl Machine {
    /// Boots with these devices. In arguments `DIR` stands for `dir`.
    #[track_caller]
    pub fn boot(dir: &Path, devices: &[impl AsRef<str>]) -> Machine {
        let mut machine = Machine::start(dir, devices);
        machine.answer("booting");
        machine
    }

    /// Starts it, with its files in `dir`, and waits for no guest: one may be on its way from another machine.
    #[track_caller]
    pub fn start(dir: &Path, devices: &[impl AsRef<str>]) -> Machine {
        let made = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("guest");
        assert!(
            made.join("made-of").exists(),
            "there is nothing to boot: run crates/storage-daemon/tests/guest/prepare first"
        );
        let console = dir.join("console");
        let socket = dir.join("shell.sock");
        // That of a machine before it.
        let _ = fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        let mut command = Command::new(made.join("qemu/start/qemu-system-x86_64"));
        command
            .env("QEMU_MODULE_DIR", made.join("qemu/lib/x86_64-linux-gnu/qemu"))
            .args("-nodefaults -no-user-config -display none -no-reboot".split(' '))
            .args("-machine pc,memory-backend=memory -accel tcg -cpu max -smp 2".split(' '))
            // A back end sees the memory.
            .args(["-m", "256", "-object", "memory-backend-memfd,id=memory,size=256M,share=on"])
            .arg("-L")
            .arg(made.join("qemu/usr/share/qemu"))
            .arg("-L")
            .arg(made.join("qemu/usr/share/seabios"))
            .arg("-kernel")
            .arg(made.join("vmlinuz"))
            .arg("-initrd")
            .arg(made.join("initramfs"))
            .args(["-append", "console=ttyS0 panic=-1 no_timer_check"])
            .args(["-serial", &format!("file:{}", tools::text(&console))])
            .args(["-chardev", &format!("socket,id=shell,path={}", tools::text(&socket))])
            .args(["-serial", "chardev:shell"])
            .args(devices.iter().map(|it| it.as_ref().replace("DIR", tools::text(dir))))
            .stdin(Stdio::null())
            .stderr(File::create(dir.join("qemu.log")).unwrap());
        let mut qemu = command.spawn().unwrap();
        let Some(stream) = accept(&listener, &mut qemu) else {
            let _ = qemu.kill();
            let _ = qemu.wait();
            panic!("QEMU: {}", fs::read_to_string(dir.join("qemu.log")).unwrap());
        };
        Machine { qemu, console, shell: BufReader::new(stream) }
    }

    /// Does what the shell of the guest is told in a line; returns what that says. It must succeed.
    #[track_caller]
    pub fn run(&mut self, line: &str) -> String {
        assert!(!line.contains('\n'));
        let sent = self.shell.get_mut().write_all(format!("{line}\n").as_bytes());
        sent.unwrap_or_else(|error| panic!("{line}: {error}\n{}", self.last_words()));
        self.answer(line)
    }

    /// What the guest says to a line, to the exit status at its end.
    #[track_caller]
    fn answer(&mut self, line: &str) -> String {
        let give_up = Instant::now() + PATIENCE;
        let mut said = Vec::new();
        loop {
            let rest = give_up.saturating_duration_since(Instant::now());
            let rest = rest.max(Duration::from_millis(1));
            self.shell.get_ref().set_read_timeout(Some(rest)).unwrap();
            let from = said.len();
            match self.shell.read_until(b'\n', &mut said) {
                Ok(0) => panic!("{line}: the machine has ended\n{}", self.last_words()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let said = String::from_utf8_lossy(&said);
                    panic!("{line}: not within {PATIENCE:?}\n{said}{}", self.last_words());
                }
                Err(error) => panic!("{line}: {error}\n{}", self.last_words()),
            }
            if let Some(status) = said[from..].strip_prefix(b"=") {
                let failed = status != b"0\n";
                said.truncate(from);
                let said = String::from_utf8(said).unwrap();
                assert!(!failed, "{line} has failed: {said}{}", self.last_words());
                return said;
            }
        }
    }

    /// Ends it in order.
    #[track_caller]
    pub fn power_off(mut self) {
        self.shell.get_mut().write_all(b"poweroff -f\n").unwrap();
        let give_up = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.qemu.try_wait().unwrap() {
                assert!(status.success(), "QEMU ends with {status}");
                return;
            }
            assert!(Instant::now() < give_up, "it does not end\n{}", self.last_words());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// What QEMU says, and the end of what the guest's console shows.
    fn last_words(&self) -> String {
        let log = fs::read_to_string(self.console.with_file_name("qemu.log")).unwrap_or_default();
        let console = fs::read(&self.console).unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        let lines: Vec<&str> = console.lines().collect();
        format!("QEMU: {log}\nconsole:\n{}", lines[lines.len().saturating_sub(20)..].join("\n"))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// The connection that QEMU makes, or none if it ends instead.
fn accept(listener: &UnixListener, qemu: &mut Child) -> Option<UnixStream> {
    listener.set_nonblocking(true).unwrap();
    let give_up = Instant::now() + PATIENCE;
    while Instant::now() < give_up && qemu.try_wait().unwrap().is_none() {
        if let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(false).unwrap();
            return Some(stream);
        }
        thread::sleep(Duration::from_millis(5));
    }
    None
}

/// Devices of a guest to which 10.0.2.100:10809 is this server, and that reaches nothing else.
pub fn network_to(server: SocketAddr) -> [String; 4] {
    let made = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("guest");
    let busybox = made.join("programs/bin/busybox");
    let (ip, port) = (server.ip(), server.port());
    let forward = format!("cmd:{} nc {ip} {port}", tools::text(&busybox));
    [
        "-netdev".to_owned(),
        format!("user,id=net,restrict=on,guestfwd=tcp:10.0.2.100:10809-{forward}"),
        "-device".to_owned(),
        "virtio-net-pci,netdev=net,romfile=".to_owned(),
    ]
}
