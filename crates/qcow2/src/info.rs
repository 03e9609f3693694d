//! What an image tells of itself.

use std::io;

use coblk_aio::Co;
use coblk_block::{
    Amend, BackingName, CheckReport, ImageFormat, ImageInfo, ImageSnapshot, Repair, SpecificInfo,
};
use serde_json::{Map, Value, json};

use crate::image::Image;
use crate::layout::{Autoclear, Bitmap, BitmapFlags, Compatible, Crypt, Header, Incompatible};

impl ImageFormat for Image {
    fn info(&self) -> io::Result<ImageInfo> {
        let header = &*self.header();
        let mut info = ImageInfo::new(header.disk_bytes());
        info.cluster_size = Some(self.geometry.cluster_bytes());
        info.encrypted = header.crypt()? != Crypt::None;
        info.dirty = header.incompatible.contains(Incompatible::DIRTY);
        info.corrupt = header.incompatible.contains(Incompatible::CORRUPT);
        info.backing = backing_name(header);
        info.snapshots = self.snapshot_list();
        info.specific = Some(SpecificInfo::new("qcow2", Value::Object(self.specific())));
        Ok(info)
    }

    fn co_check(&self, co: &Co<'_>, repair: Repair) -> io::Result<CheckReport> {
        match repair {
            Repair::None => self.co_look(co),
            Repair::Leaks | Repair::All => self.co_repair(co, repair),
        }
    }

    fn co_change_backing(&self, co: &Co<'_>, backing: Option<&BackingName>) -> io::Result<()> {
        self.co_name_backing(co, backing)
    }

    fn co_make_empty(&self, co: &Co<'_>) -> io::Result<()> {
        self.co_empty(co)
    }

    fn co_amend(&self, co: &Co<'_>, amend: Amend<'_>) -> io::Result<()> {
        self.co_amend_image(co, amend)
    }

    fn check_new_bitmap(&self, name: &str, granularity: u64) -> io::Result<()> {
        Ok(Image::check_new_bitmap(self, name, granularity)?)
    }

    fn co_remove_bitmap(&self, co: &Co<'_>, name: &str) -> io::Result<()> {
        Image::co_remove_bitmap(self, co, name)
    }

    fn co_snapshots(&self, _: &Co<'_>) -> io::Result<Vec<ImageSnapshot>> {
        Ok(self.snapshot_list())
    }

    fn co_create_snapshot(&self, co: &Co<'_>, name: &str) -> io::Result<String> {
        self.co_create(co, name)
    }

    fn co_delete_snapshot(&self, co: &Co<'_>, id: &str) -> io::Result<()> {
        self.co_delete(co, id)
    }

    fn co_apply_snapshot(&self, co: &Co<'_>, id: &str) -> io::Result<()> {
        self.co_apply(co, id)
    }
}

/// The backing file that a header names.
fn backing_name(header: &Header) -> Option<BackingName> {
    let name = String::from_utf8_lossy(header.backing.as_deref()?).into_owned();
    let format = header.extensions.backing_format().ok().flatten();
    Some(BackingName::new(name, format.map(str::to_owned)))
}

impl Image {
    fn snapshot_list(&self) -> Vec<ImageSnapshot> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let snapshots = self.snapshots();
        let snapshots = snapshots.iter().map(|it| {
            let length = it.disk_bytes.unwrap_or(self.disk_bytes());
            let mut snapshot = ImageSnapshot::new(text(&it.id), text(&it.name), length);
            snapshot.vm_state_size = it.vm_state_bytes;
            snapshot.date = (it.date_seconds.into(), it.date_nanoseconds);
            snapshot.vm_clock = it.vm_clock_ns;
            snapshot.icount = it.icount;
            snapshot
        });
        snapshots.collect()
    }

    /// The members of QAPI's `ImageInfoSpecificQCow2`.
    fn specific(&self) -> Map<String, Value> {
        let header = &*self.header();
        let mut data = Map::new();
        let mut add = |name: &str, value: Value| data.insert(name.to_owned(), value);
        add("compat", json!(if header.version == 2 { "0.10" } else { "1.1" }));
        add("compression-type", json!(self.compression().name()));
        add("refcount-bits", json!(1_u32 << header.refcount_order));
        if let Some(encryption) = &self.encryption {
            add("encrypt", encryption.info());
        }
        if header.version == 2 {
            return data;
        }
        let lazy = header.compatible.contains(Compatible::LAZY_REFCOUNTS);
        add("lazy-refcounts", json!(lazy));
        add("corrupt", json!(header.incompatible.contains(Incompatible::CORRUPT)));
        add("extended-l2", json!(header.incompatible.contains(Incompatible::EXTENDED_L2)));
        if header.incompatible.contains(Incompatible::DATA_FILE) {
            if let Some(name) = header.extensions.data_file() {
                add("data-file", json!(String::from_utf8_lossy(name)));
            }
            let is_raw = header.autoclear.contains(Autoclear::RAW_DATA_FILE);
            add("data-file-raw", json!(is_raw));
        }
        let bitmaps = self.bitmaps.directory();
        if !bitmaps.is_empty() {
            add("bitmaps", bitmaps_info(&bitmaps));
        }
        drop(bitmaps);
        data
    }
}

/// The members of QAPI's `Qcow2BitmapInfo`, as the file has them.
fn bitmaps_info(directory: &[Bitmap]) -> Value {
    let bitmaps = directory.iter().map(|bitmap| {
        let flags = [(BitmapFlags::IN_USE, "in-use"), (BitmapFlags::AUTO, "auto")];
        let flags = flags.iter().filter(|(flag, _)| bitmap.flags.contains(*flag));
        let flags: Vec<&str> = flags.map(|(_, name)| *name).collect();
        json!({
            "name": bitmap.name,
            "granularity": 1_u64 << bitmap.granularity_bits,
            "flags": flags,
        })
    });
    Value::Array(bitmaps.collect())
}
