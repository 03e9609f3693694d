//! Compression of clusters.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// How the clusters of an image are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompressionType {
    /// Raw deflate.
    Deflate,
    /// Frames of zstd.
    Zstd,
}

impl CompressionType {
    /// Its name in options.
    pub fn name(self) -> &'static str {
        match self {
            CompressionType::Deflate => "zlib",
            CompressionType::Zstd => "zstd",
        }
    }

    /// Whether this build can decompress it.
    pub fn is_supported(self) -> bool {
        self == CompressionType::Deflate || cfg!(feature = "zstd")
    }
}

/// Decompresses a cluster. All of `cluster` is filled, and bytes of `input` that follow are ignored. Returns
/// whether it could be.
///
/// Allocates a window: 32 KiB for deflate, and at most 8 MiB for zstd.
pub fn inflate(kind: CompressionType, input: &[u8], cluster: &mut [u8]) -> bool {
    match kind {
        CompressionType::Deflate => inflate_deflate(input, cluster),
        CompressionType::Zstd => inflate_zstd(input, cluster),
    }
}

/// Compresses a cluster into `output`. Returns how long it is; `None` if it does not fit.
///
/// Allocates what the compressor needs: some 100 KiB for deflate, a few MiB for zstd.
pub fn deflate(kind: CompressionType, cluster: &[u8], output: &mut [u8]) -> Option<usize> {
    match kind {
        CompressionType::Deflate => deflate_deflate(cluster, output),
        CompressionType::Zstd => deflate_zstd(cluster, output),
    }
}

/// With a window of 2^12, which all readers have.
fn deflate_deflate(cluster: &[u8], output: &mut [u8]) -> Option<usize> {
    let mut deflater = Compress::new_with_window_bits(Compression::default(), false, 12);
    let status = deflater.compress(cluster, output, FlushCompress::Finish).ok()?;
    (status == Status::StreamEnd).then_some(deflater.total_out() as usize)
}

#[cfg(feature = "zstd")]
fn deflate_zstd(cluster: &[u8], output: &mut [u8]) -> Option<usize> {
    zstd_safe::compress(output, cluster, zstd_safe::CLEVEL_DEFAULT).ok()
}

#[cfg(not(feature = "zstd"))]
fn deflate_zstd(_: &[u8], _: &mut [u8]) -> Option<usize> {
    None
}

/// Windows up to 2^15 are taken, though images have 2^12 as a rule: other programs write larger ones.
fn inflate_deflate(input: &[u8], cluster: &mut [u8]) -> bool {
    let mut inflater = Decompress::new(false);
    // A full buffer is what is asked for, whether the stream ends there or not.
    let result = inflater.decompress(input, cluster, FlushDecompress::Finish);
    result.is_ok() && inflater.total_out() == cluster.len() as u64
}

#[cfg(feature = "zstd")]
fn inflate_zstd(input: &[u8], cluster: &mut [u8]) -> bool {
    use zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer};

    /// Binary logarithm of the largest window.
    const MAX_WINDOW_LOG: u32 = 23;

    let Some(mut inflater) = DCtx::try_create() else { return false };
    if inflater.set_parameter(DParameter::WindowLogMax(MAX_WINDOW_LOG)).is_err() {
        return false;
    }
    let len = cluster.len();
    let (mut input, mut output) = (InBuffer::around(input), OutBuffer::around(cluster));
    loop {
        let before = (input.pos(), output.pos());
        let Ok(left) = inflater.decompress_stream(&mut output, &mut input) else { return false };
        if output.pos() == len {
            // A frame that goes on has more than a cluster. Its checksum is perhaps to be read yet.
            if left == 0 {
                return true;
            }
        }
        if (input.pos(), output.pos()) == before {
            return false;
        }
    }
}

#[cfg(not(feature = "zstd"))]
fn inflate_zstd(_: &[u8], _: &mut [u8]) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deflate(data: &[u8], window_bits: u8) -> Vec<u8> {
        let mut out = Vec::with_capacity(data.len() + 100);
        let mut deflater = Compress::new_with_window_bits(Compression::best(), false, window_bits);
        deflater.compress_vec(data, &mut out, FlushCompress::Finish).unwrap();
        out
    }

    /// Half random, half repeated from far behind.
    fn data() -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(7);
        let half: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(16 << 10).collect();
        [&half[..], &half].concat()
    }

    #[test]
    fn q41_exactly_a_cluster_comes_out() {
        let data = data();
        let packed = deflate(&data, 12);
        let mut out = vec![0; data.len()];
        assert!(inflate(CompressionType::Deflate, &packed, &mut out));
        assert_eq!(out, data);
        // What follows is another cluster's.
        let followed = [&packed[..], &[0xaa; 600]].concat();
        assert!(inflate(CompressionType::Deflate, &followed, &mut out));
        // Too little, cut, or no stream at all.
        let mut longer = vec![0; data.len() + 1];
        assert!(!inflate(CompressionType::Deflate, &packed, &mut longer));
        assert!(!inflate(CompressionType::Deflate, &packed[..packed.len() / 2], &mut out));
        assert!(!inflate(CompressionType::Deflate, &[0xff; 100], &mut out));
        assert!(!inflate(CompressionType::Deflate, &[], &mut out));
    }

    #[test]
    fn q42_windows_of_other_writers_are_taken() {
        let data = data();
        let packed = deflate(&data, 15);
        // The window of 32 KiB was used.
        assert!(packed.len() < 17 << 10);
        let mut out = vec![0; data.len()];
        assert!(inflate(CompressionType::Deflate, &packed, &mut out));
        assert_eq!(out, data);
    }

    #[cfg(feature = "zstd")]
    #[test]
    fn q209_zstd_gives_a_cluster_and_no_more_within_a_window() {
        let data = data();
        let pack = |data: &[u8]| {
            let mut out = vec![0; data.len() + 1000];
            let len = zstd_safe::compress(&mut out[..], data, 3).unwrap();
            out.truncate(len);
            out
        };
        let packed = pack(&data);
        let mut out = vec![0; data.len()];
        assert!(inflate(CompressionType::Zstd, &packed, &mut out));
        assert_eq!(out, data);
        let followed = [&packed[..], &[0xaa; 600]].concat();
        assert!(inflate(CompressionType::Zstd, &followed, &mut out));
        // Two frames may make one cluster.
        let frames = [pack(&data[..1000]), pack(&data[1000..])].concat();
        assert!(inflate(CompressionType::Zstd, &frames, &mut out));
        assert_eq!(out, data);
        // A frame with more, one with less, none.
        assert!(!inflate(CompressionType::Zstd, &packed, &mut out[1..]));
        assert!(!inflate(CompressionType::Zstd, &packed, &mut vec![0; data.len() + 1]));
        assert!(!inflate(CompressionType::Zstd, &packed[..packed.len() - 1], &mut out));
        assert!(!inflate(CompressionType::Zstd, &[1; 100], &mut out));
        // A window of 16 MiB: magic, descriptor, window descriptor (exponent 14, mantissa 0).
        let window = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 14 << 3, 1, 0, 0];
        assert!(!inflate(CompressionType::Zstd, &window, &mut out[..0]));
    }
}
