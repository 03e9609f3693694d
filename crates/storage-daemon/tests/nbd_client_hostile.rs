//! Servers that lie: each lie costs its connection, and no more. What a read brings is what was written.
#![forbid(unsafe_code)]

mod util;

use std::io;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use coblk::{AioContext, Blockdevs, options::NodeOptions};
use coblk_tests::load::{Kind, Mix, Shared};
use coblk_tests::random::{Random, seeds};
use coblk_tests::recorded::{Behaviour, Recorder, SECTOR};
use coblk_tests::register::Registers;
use coblk_tests::tools;
use util::Place;
use util::fake::{self, Asked, Fake, Style};

const SECTORS: usize = 512;
/// Connections that lie, one after the other; those that follow are honest.
const LIARS: usize = 4;

/// What a server says in the place of an honest answer.
#[derive(Clone, Copy, Debug)]
enum Lie {
    WrongMagic,
    WrongCookie,
    Twice,
    OldCookie,
    Half,
    HalfHeader,
    TooLong,
    BeforeTheRequest,
    BehindTheRequest,
    PartTwice,
    PartMissing,
    ZeroLength,
    HugeChunk,
    HugeHole,
    UnknownChunk,
    DoneWithLength,
    ErrorOfNone,
    ErrorTooLong,
    ErrorsWithoutEnd,
    ExtentToARead,
    DataToAWrite,
    SimpleToARead,
    OtherStyle,
    Noise,
    Nothing,
}

const LIES: [Lie; 25] = [
    Lie::WrongMagic,
    Lie::WrongCookie,
    Lie::Twice,
    Lie::OldCookie,
    Lie::Half,
    Lie::HalfHeader,
    Lie::TooLong,
    Lie::BeforeTheRequest,
    Lie::BehindTheRequest,
    Lie::PartTwice,
    Lie::PartMissing,
    Lie::ZeroLength,
    Lie::HugeChunk,
    Lie::HugeHole,
    Lie::UnknownChunk,
    Lie::DoneWithLength,
    Lie::ErrorOfNone,
    Lie::ErrorTooLong,
    Lie::ErrorsWithoutEnd,
    Lie::ExtentToARead,
    Lie::DataToAWrite,
    Lie::SimpleToARead,
    Lie::OtherStyle,
    Lie::Noise,
    Lie::Nothing,
];

/// A disk in memory, and what was seen of its requests.
struct Disk {
    bytes: Vec<u8>,
    random: Random,
    last_cookie: u64,
}

impl Disk {
    /// Carries a request out; the data of a read.
    fn carry_out(&mut self, asked: &Asked) -> Vec<u8> {
        let range = asked.offset as usize..(asked.offset + asked.length) as usize;
        match asked.command {
            fake::READ => return self.bytes[range].to_vec(),
            fake::WRITE => self.bytes[range].copy_from_slice(&asked.payload),
            fake::WRITE_ZEROES => self.bytes[range].fill(0),
            _ => {}
        }
        Vec::new()
    }

    /// A read that is cut, in any order, with holes where there are zeroes.
    fn pieces(&mut self, fake: &Fake, asked: &Asked, data: &[u8]) -> Vec<u8> {
        let (mut from, mut pieces) = (0, Vec::new());
        while from < data.len() {
            let len = 1 + self.random.below((data.len() - from) as u64) as usize;
            pieces.push(from..from + len);
            from += len;
        }
        let mut said = Vec::new();
        while !pieces.is_empty() {
            let piece = pieces.swap_remove(self.random.below(pieces.len() as u64) as usize);
            let last = pieces.is_empty() && self.random.below(2) == 0;
            let offset = (asked.offset + piece.start as u64).to_be_bytes();
            let data = &data[piece];
            said.extend(match data.iter().all(|byte| *byte == 0) {
                true => {
                    let hole = [&offset[..], &(data.len() as u32).to_be_bytes()].concat();
                    fake.chunk(last, 2, asked, 12, &hole)
                }
                false => {
                    let data = [&offset[..], data].concat();
                    fake.chunk(last, 1, asked, data.len() as u64, &data)
                }
            });
            if pieces.is_empty() && !last {
                said.extend(fake.chunk(true, 0, asked, 0, &[]));
            }
        }
        said
    }

    fn honest(&mut self, fake: &Fake, asked: &Asked, data: &[u8]) -> Vec<u8> {
        match fake.style > Style::Simple && asked.command == fake::READ {
            true => self.pieces(fake, asked, data),
            false => fake.answer(asked, 0, data),
        }
    }

    /// What the server says in the place of an answer. Not all lies fit all answers.
    fn lie(&mut self, lie: Lie, fake: &Fake, asked: &Asked, data: &[u8]) -> Option<Vec<u8>> {
        let answer = fake.answer(asked, 0, data);
        let other = Asked { cookie: asked.cookie ^ (1 << self.random.below(64)), ..asked.clone() };
        let old = Asked { cookie: self.last_cookie, ..asked.clone() };
        let said = match lie {
            Lie::WrongMagic => [&[answer[0] ^ 0x55], &answer[1..]].concat(),
            Lie::WrongCookie => fake.answer(&other, 0, data),
            Lie::Twice => [&answer[..], &answer].concat(),
            Lie::OldCookie if self.last_cookie != 0 => fake.answer(&old, 0, data),
            Lie::Half => answer[..answer.len() / 2].to_vec(),
            Lie::HalfHeader => answer[..3].to_vec(),
            Lie::Noise => {
                let mut noise = vec![0; 1 + self.random.below(4096) as usize];
                self.random.fill(&mut noise);
                noise
            }
            Lie::Nothing => Vec::new(),
            Lie::OtherStyle => {
                let style = match fake.style {
                    Style::Simple => Style::Structured,
                    Style::Structured => Style::Extended,
                    Style::Extended => Style::Structured,
                };
                let stream = fake.stream.try_clone().unwrap();
                Fake { stream, style }.answer(asked, 0, data)
            }
            _ if fake.style > Style::Simple => return self.lie_in_chunks(lie, fake, asked, data),
            _ => return None,
        };
        Some(said)
    }

    /// Lies that only chunks can tell.
    fn lie_in_chunks(&self, lie: Lie, fake: &Fake, asked: &Asked, data: &[u8]) -> Option<Vec<u8>> {
        let answer = fake.answer(asked, 0, data);
        let is_read = asked.command == fake::READ;
        let chunk = |kind, len, data: &[u8]| fake.chunk(true, kind, asked, len, data);
        let at = |offset: u64, data: &[u8]| [&offset.to_be_bytes()[..], data].concat();
        let said = match lie {
            Lie::TooLong if is_read => {
                chunk(1, 8 + asked.length + 1, &at(asked.offset, &[data, &[0]].concat()))
            }
            Lie::BeforeTheRequest if is_read => {
                chunk(1, 8 + data.len() as u64, &at(asked.offset.wrapping_sub(1), data))
            }
            Lie::BehindTheRequest if is_read => {
                chunk(1, 8 + data.len() as u64, &at(asked.offset + 1, data))
            }
            Lie::PartTwice if is_read => {
                let half = at(asked.offset, &data[..data.len() / 2]);
                let half = fake.chunk(false, 1, asked, half.len() as u64, &half);
                [&half[..], &half, &answer].concat()
            }
            Lie::PartMissing if is_read => {
                let part = at(asked.offset, &data[..data.len() - 1]);
                chunk(1, part.len() as u64, &part)
            }
            Lie::ZeroLength if is_read => chunk(1, 8, &at(asked.offset, &[])),
            Lie::HugeChunk if is_read => chunk(1, u64::MAX, &at(asked.offset, data)),
            Lie::HugeHole if is_read => chunk(2, 12, &at(asked.offset, &[0xff; 4])),
            Lie::UnknownChunk => chunk(77, 8, &[0; 8]),
            Lie::DoneWithLength => chunk(0, 8, &[0; 8]),
            Lie::ErrorOfNone => chunk(0x8001, 6, &[0; 6]),
            Lie::ErrorTooLong => chunk(0x8001, 1 << 20, &[0, 0, 0, 5, 0xff, 0xff]),
            Lie::ErrorsWithoutEnd => {
                let error = fake.chunk(false, 0x8001, asked, 6, &[0, 0, 0, 5, 0, 0]);
                error.repeat(1000)
            }
            Lie::ExtentToARead => {
                let extent = fake.extent(asked, 7);
                let kind = if fake.style == Style::Extended { 6 } else { 5 };
                chunk(kind, extent.len() as u64, &extent)
            }
            Lie::DataToAWrite if asked.command == fake::WRITE => {
                chunk(1, 9, &at(asked.offset, &[1]))
            }
            Lie::SimpleToARead if is_read => {
                [Fake::simple(0, asked.cookie), data.to_vec()].concat()
            }
            _ => return None,
        };
        Some(said)
    }
}

/// Serves connections until the client disconnects; the first ones end with a lie.
fn serve(listener: &UnixListener, seed: u64, lies: &AtomicUsize, over: &AtomicBool) {
    let mut disk =
        Disk { bytes: vec![0; SECTORS * SECTOR], random: Random::new(seed), last_cookie: 0 };
    let most = [Style::Simple, Style::Structured, Style::Extended][(seed % 3) as usize];
    for number in 0.. {
        let stream = listener.accept().unwrap().0;
        if over.load(Ordering::Acquire) {
            return;
        }
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let Ok(mut fake) = Fake::negotiate(stream, most, (SECTORS * SECTOR) as u64, fake::ALL)
        else {
            continue;
        };
        let honest_for = if number < LIARS { disk.random.below(40) } else { u64::MAX };
        match converse(&mut disk, &mut fake, honest_for, lies) {
            Ok(()) => return,
            // The client has hung up on the liar, as it should.
            Err(_) => assert!(number < LIARS, "seed {seed}: the client leaves an honest server"),
        }
    }
}

fn converse(
    disk: &mut Disk,
    fake: &mut Fake,
    honest_for: u64,
    lies: &AtomicUsize,
) -> io::Result<()> {
    let lie = LIES[disk.random.below(LIES.len() as u64) as usize];
    for number in 0.. {
        let asked = fake.request()?;
        if asked.command == fake::DISCONNECT {
            return Ok(());
        }
        let data = disk.carry_out(&asked);
        let lie = (number >= honest_for).then(|| disk.lie(lie, fake, &asked, &data)).flatten();
        let Some(said) = lie else {
            let answer = disk.honest(fake, &asked, &data);
            disk.last_cookie = asked.cookie;
            fake.say(&answer)?;
            continue;
        };
        fake.say(&said)?;
        lies.fetch_add(1, Ordering::Relaxed);
        // A half answer is one when it ends; a whole lie ends the connection from the other side.
        fake.stream.shutdown(std::net::Shutdown::Write)?;
        while fake.request().is_ok() {}
        return Err(io::ErrorKind::ConnectionAborted.into());
    }
    Ok(())
}

/// A load on a server that lies, to its end.
fn play(seed: u64, lies: &AtomicUsize) {
    let place = Place::in_memory();
    let listener = UnixListener::bind(place.path("server.sock")).unwrap();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| serve(&listener, seed, lies, &over));
        let ctx = AioContext::for_test().unwrap();
        let blockdevs = Blockdevs::new(coblk::drivers());
        let options = format!(
            "nbd,node-name=disk,server.type=unix,server.path={},reconnect-delay=60",
            tools::text(&place.path("server.sock"))
        );
        let node = blockdevs.open(&ctx, NodeOptions::from_keyval(&options).unwrap()).unwrap();
        let recorder = Recorder::new(Behaviour::default());
        let mix = Mix { coroutines: 8, requests: 40, longest: 128, ..Mix::all(16) };
        let mix = mix.without(&[Kind::Compressed]);
        let zeroes = vec![0; SECTORS * SECTOR];
        let shared = Shared::new(&ctx, &recorder, Registers::new(&zeroes), seed, mix);
        shared.play(&ctx, &node, &[]);
        assert_eq!(shared.fault(), None, "seed {seed}");
        drop(node);
        blockdevs.close(&ctx, "disk").unwrap();
        over.store(true, Ordering::Release);
        // The server may have lied last, and wait for the next client.
        drop(std::os::unix::net::UnixStream::connect(place.path("server.sock")));
    });
}

#[test]
fn lies_cost_their_connection_and_no_request() {
    let (lies, seeds) = (AtomicUsize::new(0), Mutex::new(seeds(40)));
    // Several at once: most of the time is pauses between connections.
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    let seed = seeds.lock().unwrap().next();
                    let Some(seed) = seed else { return };
                    play(seed, &lies);
                }
            });
        }
    });
    println!("{} lies", lies.load(Ordering::Relaxed));
    assert!(lies.load(Ordering::Relaxed) > 0);
}

/// A negotiation that does not end, or makes no sense, is given up; the error says what is wrong.
#[test]
fn lies_in_the_handshake_are_refused() {
    let option_reply = |option: u32, kind: u32, len: u32| {
        let numbers = [option.to_be_bytes(), kind.to_be_bytes(), len.to_be_bytes()];
        [&0x0003_e889_0455_65a9u64.to_be_bytes()[..], numbers.as_flattened()].concat()
    };
    let greeting = [&0x4e42_444d_4147_4943u64.to_be_bytes()[..], b"IHAVEOPT", &[0, 3]].concat();
    let unsupported = |option| option_reply(option, 0x8000_0001, 0);
    let upto_go = [&greeting[..], &unsupported(11), &unsupported(8)].concat();
    let info = |data: &[u8]| [option_reply(7, 3, data.len() as u32), data.to_vec()].concat();
    let export = |size: u64| info(&[&[0, 0][..], &size.to_be_bytes(), &[0, 1]].concat());
    let ack = option_reply(7, 1, 0);
    let cases: [(&str, Vec<u8>, &str); 10] = [
        ("noise", vec![0x55; 64], "not an NBD server"),
        ("no fixed newstyle", [&greeting[..16], &[0, 0]].concat(), "too old"),
        ("another option", [&greeting[..], &unsupported(8)].concat(), "was not sent"),
        ("a huge reply", [&greeting[..], &option_reply(11, 1, u32::MAX)].concat(), "too long"),
        ("no export", [&upto_go[..], &ack].concat(), "tells nothing of its export"),
        ("too long", [&upto_go[..], &export(u64::MAX), &ack].concat(), "longer than a node"),
        ("a short description", [&upto_go[..], &info(&[0, 0, 1])].concat(), "10 bytes"),
        ("no end", [&upto_go[..], &export(512).repeat(100)].concat(), "does not end"),
        (
            "no block",
            [&upto_go[..], &info(&[0, 3, 0, 0, 0, 3, 0, 0, 0, 9, 0, 0, 0, 9]), &export(512), &ack]
                .concat(),
            "smallest block",
        ),
        ("cut off", upto_go[..upto_go.len() - 1].to_vec(), "unexpected end of file"),
    ];
    for (what, said, wanted) in cases {
        let place = Place::in_memory();
        let listener = UnixListener::bind(place.path("server.sock")).unwrap();
        let server = thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            // The client may have gone before it has all.
            let _ = io::Write::write_all(&mut stream, &said);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = io::copy(&mut stream, &mut io::sink());
        });
        let ctx = AioContext::for_test().unwrap();
        let blockdevs = Arc::new(Blockdevs::new(coblk::drivers()));
        let options = format!(
            "nbd,node-name=disk,server.type=unix,server.path={}",
            tools::text(&place.path("server.sock"))
        );
        let opened = blockdevs.open(&ctx, NodeOptions::from_keyval(&options).unwrap());
        let error = opened.err().unwrap_or_else(|| panic!("{what} is taken")).to_string();
        assert!(error.contains(wanted), "{what}: {error}");
        server.join().unwrap();
    }
}
