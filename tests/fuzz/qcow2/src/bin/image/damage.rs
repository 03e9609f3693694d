//! [`damage`]: changes of an image that its structure suggests, as an input says them.

/// What is left of an input. Behind its end there are zeroes.
pub struct Input<'a>(pub &'a [u8]);

impl Input<'_> {
    pub fn byte(&mut self) -> u8 {
        self.0.split_off_first().copied().unwrap_or(0)
    }

    pub fn half(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    pub fn word(&mut self) -> u64 {
        (0..8).fold(0, |word, _| word << 8 | u64::from(self.byte()))
    }

    pub fn is_over(&self) -> bool {
        self.0.is_empty()
    }
}

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const OFFSETS: u64 = 0x00ff_ffff_ffff_fe00;

fn word(bytes: &[u8], at: u64) -> u64 {
    let at = usize::try_from(at).unwrap_or(usize::MAX);
    let there = bytes.get(at..at.saturating_add(8)).and_then(|it| it.try_into().ok());
    there.map_or(0, u64::from_be_bytes)
}

/// Where the structures of an image are, as it says now.
struct Places {
    cluster: u64,
    l1: u64,
    l2: u64,
    refcount_table: u64,
    refcount_block: u64,
    snapshots: u64,
    snapshot_l1: u64,
    end: u64,
}

impl Places {
    fn new(bytes: &[u8]) -> Places {
        let l1 = word(bytes, 40);
        let refcount_table = word(bytes, 48);
        let snapshots = word(bytes, 64 - 4) & 0xffff_ffff;
        let table = word(bytes, 64);
        Places {
            cluster: 1 << (word(bytes, 16) & 0xffff_ffff).clamp(9, 21),
            l1,
            l2: word(bytes, l1) & OFFSETS,
            refcount_table,
            refcount_block: word(bytes, refcount_table) & OFFSETS,
            snapshots: if snapshots > 0 { table } else { 0 },
            snapshot_l1: if snapshots > 0 { word(bytes, table) } else { 0 },
            end: (bytes.len() as u64),
        }
    }

    /// The structure of a number.
    fn choose(&self, number: u8) -> u64 {
        match number % 10 {
            0 => 0,
            1 => self.l1,
            2 => self.l2,
            3 => self.refcount_table,
            4 => self.refcount_block,
            5 => self.snapshots,
            6 => self.snapshot_l1,
            7 => self.end.next_multiple_of(self.cluster),
            8 => self.end.next_multiple_of(self.cluster) + 3 * self.cluster,
            _ => u64::from(number) * self.cluster,
        }
    }
}

/// One change: where, and what comes to be there.
fn change(bytes: &mut [u8], input: &mut Input<'_>) {
    let places = Places::new(bytes);
    let (structure, index, kind) = (input.byte(), u64::from(input.half()), input.byte());
    let at = places.choose(structure).saturating_add(match kind & 0x80 {
        0 => index % (places.cluster / 8) * 8,
        _ => index,
    });
    let value = match kind % 8 {
        0 => input.word(),
        1 => places.choose(input.byte()),
        2 => places.choose(input.byte()) | COPIED,
        3 => places.choose(input.byte()) | COMPRESSED,
        4 => places.choose(input.byte()) | COPIED | 1,
        5 => word(bytes, at) ^ 1 << (input.byte() % 64),
        6 => word(bytes, at).wrapping_add(u64::from(input.byte())),
        _ => word(bytes, at) & !(0xff << (input.byte() % 64)),
    };
    let Ok(at) = usize::try_from(at) else { return };
    let len = if kind & 0x40 == 0 { 8 } else { 1 };
    if let Some(target) = bytes.get_mut(at..at.saturating_add(len)) {
        target.copy_from_slice(&value.to_be_bytes()[8 - len..]);
    }
}

/// Changes an image as an input says.
pub fn damage(bytes: &mut [u8], input: &mut Input<'_>) {
    for _ in 0..input.byte() % 16 {
        change(bytes, input);
    }
}
