//! What is asked of an open image, as an input says.

use coblk_aio::{AioContext, Co, IoVector, IoVectorMut};
use coblk_block::{BlockBackend, Repair, Truncate, WriteFlags, ZeroFlags};

use crate::damage::Input;

/// So much of a disk is looked at, in bytes.
const MAX_DISK: u64 = 256 << 10;
/// Requests of an input.
const MAX_REQUESTS: usize = 24;

/// Reads a disk, as far as that can be, and asks about it.
pub fn read_all(ctx: &AioContext, disk: &BlockBackend) {
    let Ok(length) = disk.length() else { return };
    for at in (0..length.min(MAX_DISK)).step_by(32 << 10) {
        let mut data = vec![0; (length - at).min(32 << 10) as usize];
        let _ = disk.preadv(ctx, at, &mut IoVectorMut::from(&mut data[..]));
        let _ = disk.block_status(ctx, at, data.len() as u64);
    }
    let about = |co: &Co<'_>| {
        let node = disk.node().expect("a node");
        let image = node.co_image(co)?;
        let _ = (image.info(), image.co_snapshots(co)?, image.co_check(co, Repair::None));
        Ok::<_, std::io::Error>(())
    };
    let _ = ctx.run(about);
}

/// The beginning of a disk, if it can be read.
pub fn content(ctx: &AioContext, disk: &BlockBackend) -> Option<Vec<u8>> {
    let mut data = vec![0; disk.length().ok()?.min(MAX_DISK) as usize];
    disk.preadv(ctx, 0, &mut IoVectorMut::from(&mut data[..])).ok()?;
    Some(data)
}

/// A range of a disk, and a byte.
fn place(input: &mut Input<'_>, length: u64, is_whole: bool) -> (u64, u64, u8) {
    let (at, bytes, byte) = (input.half(), input.half(), input.byte());
    let unit = if is_whole { 512 } else { 1 };
    let at = (u64::from(at) * 5 % length.max(1)) / unit * unit;
    let bytes = (u64::from(bytes) % (40 << 10) / unit * unit).min(length - at);
    (at, bytes, byte)
}

/// Makes requests. `model` is what the beginning of the disk holds, if that is known: all is to be so then.
pub fn play(
    ctx: &AioContext,
    disk: &BlockBackend,
    input: &mut Input<'_>,
    mut model: Option<&mut Vec<u8>>,
) {
    for _ in 0..MAX_REQUESTS {
        if input.is_over() {
            break;
        }
        let length = disk.length().unwrap_or(0).min(MAX_DISK);
        let request = input.byte();
        let result = match request % 8 {
            0..=2 => {
                let (at, bytes, byte) = place(input, length, false);
                let data = vec![byte; bytes as usize];
                let written =
                    disk.pwritev(ctx, at, &IoVector::from(&data[..]), WriteFlags::empty());
                written.map(|()| fill(&mut model, at, bytes, byte))
            }
            3 => {
                let (at, bytes, _) = place(input, length, true);
                let flags = match request & 0x80 {
                    0 => ZeroFlags::empty(),
                    _ => ZeroFlags::MAY_UNMAP,
                };
                let zeroed = disk.pwrite_zeroes(ctx, at, bytes, flags);
                zeroed.map(|()| fill(&mut model, at, bytes, 0))
            }
            4 => {
                let (at, bytes, _) = place(input, length, true);
                let discarded = disk.pdiscard(ctx, at, bytes);
                // What is discarded may be there, or not.
                discarded.map(|()| learn(ctx, disk, &mut model, at, bytes))
            }
            5 => disk.flush(ctx),
            6 => snapshot(ctx, disk, input, &mut model),
            _ => {
                let (_, bytes, byte) = place(input, length, true);
                let data = vec![byte; bytes as usize];
                let compressed = WriteFlags::COMPRESSED;
                let at = (u64::from(byte % 4) << 16).min(length);
                let bytes = bytes.min(length.saturating_sub(at)) as usize;
                match disk.pwritev(ctx, at, &IoVector::from(&data[..bytes]), compressed) {
                    Ok(()) => {
                        fill(&mut model, at, bytes as u64, byte);
                        Ok(())
                    }
                    Err(error) if error.raw_os_error() != Some(libc::EIO) => Ok(()),
                    Err(error) => Err(error),
                }
            }
        };
        if let (Err(error), Some(_)) = (&result, &model) {
            // A small file may have no space left, and a count be at its maximum.
            let errno = error.raw_os_error();
            assert_ne!(errno, Some(libc::EIO), "request {request} to a clean image: {error}");
            return;
        }
    }
    if let Some(model) = model {
        let read = content(ctx, disk).expect("a clean image that is read");
        let most = read.len().min(model.len());
        let differs = read[..most].iter().zip(&model[..most]).position(|(is, should)| is != should);
        assert_eq!(differs, None, "the disk has another byte than was written");
    }
}

fn fill(model: &mut Option<&mut Vec<u8>>, at: u64, bytes: u64, byte: u8) {
    if let Some(model) = model {
        let end = (at + bytes).min(model.len() as u64);
        model[at as usize..end as usize].fill(byte);
    }
}

/// Takes what the disk has for what it is to have.
fn learn(
    ctx: &AioContext,
    disk: &BlockBackend,
    model: &mut Option<&mut Vec<u8>>,
    at: u64,
    bytes: u64,
) {
    let (Some(model), Some(read)) = (model, content(ctx, disk)) else { return };
    let range = at as usize..(at + bytes).min(read.len().min(model.len()) as u64) as usize;
    model[range.clone()].copy_from_slice(&read[range]);
}

/// Makes, applies or deletes a snapshot, or changes the length.
fn snapshot(
    ctx: &AioContext,
    disk: &BlockBackend,
    input: &mut Input<'_>,
    model: &mut Option<&mut Vec<u8>>,
) -> std::io::Result<()> {
    let (what, which) = (input.byte() % 4, usize::from(input.byte()));
    if what == 3 {
        let length = u64::from(input.half()) * 512;
        let resized = ctx.run(|co| disk.co_truncate_with(co, length, Truncate::default()));
        if let (Ok(()), Some(model)) = (&resized, model) {
            model.resize(length.min(MAX_DISK) as usize, 0);
            **model = content(ctx, disk).expect("a clean image that is read");
        }
        return Ok(());
    }
    let node = disk.node().expect("a node");
    let result = ctx.run(|co| {
        let image = node.co_image(co)?;
        let all = image.co_snapshots(co)?;
        let chosen = all.get(which % all.len().max(1)).map(|it| it.id.clone());
        match (what, chosen) {
            (0, _) | (_, None) => image.co_create_snapshot(co, "new").map(drop),
            (1, Some(id)) => image.co_apply_snapshot(co, &id),
            (_, Some(id)) => image.co_delete_snapshot(co, &id),
        }
    });
    if let (Ok(()), 1, Some(model)) = (&result, what, model) {
        **model = content(ctx, disk).expect("a clean image that is read");
    }
    match result {
        Err(error) if error.raw_os_error() == Some(libc::EIO) => Err(error),
        _ => Ok(()),
    }
}
