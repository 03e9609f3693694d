//! `coblk-readers LIBRARY IMAGE OUTPUT`: writes what LIBRARY, `imago` or `qcow2-rs`, reads in a qcow2 image to a
//! raw file.
#![forbid(unsafe_code)]

use std::error::Error;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// How much is read at once, in bytes.
const CHUNK: usize = 1 << 20;

/// Fills a buffer with what is at an offset of the image.
type Read<'a> = dyn FnMut(u64, &mut [u8]) -> Result<(), Box<dyn Error>> + 'a;

fn copy(
    size: u64,
    output: &Path,
    buffer: &mut [u8],
    read: &mut Read<'_>,
) -> Result<(), Box<dyn Error>> {
    let mut output = File::create(output)?;
    let mut done = 0;
    while done < size {
        let bytes = (size - done).min(CHUNK as u64) as usize;
        read(done, &mut buffer[..bytes])?;
        output.write_all(&buffer[..bytes])?;
        done += bytes as u64;
    }
    Ok(())
}

fn imago(image: &Path, output: &Path) -> Result<(), Box<dyn Error>> {
    use imago::file::File;
    use imago::qcow2::Qcow2;
    use imago::{FormatAccess, FormatDriverBuilder, PermissiveImplicitOpenGate};

    let image = Qcow2::<File>::builder_path(image).open(PermissiveImplicitOpenGate::default())?;
    let image = FormatAccess::new(image);
    copy(image.size(), output, &mut vec![0; CHUNK], &mut |offset, target| {
        Ok(image.read(target, offset)?)
    })
}

fn qcow2_rs(image: &Path, output: &Path) -> Result<(), Box<dyn Error>> {
    use qcow2_rs::dev::Qcow2DevParams;
    use qcow2_rs::helpers::Qcow2IoBuf;
    use qcow2_rs::utils::qcow2_setup_dev_sync;

    // Blocks of 512 bytes, read only, through the page cache.
    let params = Qcow2DevParams::new(9, None, None, true, false);
    let image = qcow2_setup_dev_sync(image, &params).map_err(|error| error.to_string())?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(image.qcow2_prep_io()).map_err(|error| error.to_string())?;
    let mut buffer = Qcow2IoBuf::<u8>::new(CHUNK);
    copy(image.info.virtual_size(), output, &mut buffer, &mut |offset, target| {
        let read = runtime.block_on(image.read_at(target, offset));
        match read.map_err(|error| error.to_string())? {
            bytes if bytes == target.len() => Ok(()),
            bytes => Err(format!("{bytes} bytes read of {} at {offset}", target.len()).into()),
        }
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [library, image, output] = &arguments[..] else {
        return Err(io::Error::other("usage: coblk-readers imago|qcow2-rs IMAGE OUTPUT").into());
    };
    let (image, output) = (Path::new(image), Path::new(output));
    match &library[..] {
        "imago" => imago(image, output),
        "qcow2-rs" => qcow2_rs(image, output),
        _ => Err(format!("there is no library {library}").into()),
    }
}
