//! [`Members`]: all clients of a server, whichever context serves them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use coblk_aio::RemoteBottomHalf;
use coblk_aio::net::Slot;

use crate::server::export::NbdExport;
use crate::server::seats::Seat;

/// What a server knows of a client, in its own context.
pub struct Member {
    /// Unique in the process.
    pub id: u64,
    /// Set once it has chosen one.
    pub export: RefCell<Option<Rc<NbdExport>>>,
    /// The seat of that export that serves it; the context of the server if unset.
    seat: Cell<Option<usize>>,
    /// Given back when the client is off the list.
    _slot: Slot,
}

impl Member {
    /// Calls `act` with the seat that serves it, if one does.
    pub fn at_seat(&self, act: impl FnOnce(&Seat)) -> bool {
        let export = self.export.borrow();
        let seats = export.as_ref().and_then(|export| export.seats());
        let seat = seats.zip(self.seat.get()).and_then(|(seats, place)| seats.get(place));
        seat.map(act).is_some()
    }

    pub fn uses(&self, export: &Rc<NbdExport>) -> bool {
        self.export.borrow().as_ref().is_some_and(|used| Rc::ptr_eq(used, export))
    }

    pub fn has_moved(&self) -> bool {
        self.seat.get().is_some()
    }

    pub fn move_to(&self, seat: usize) {
        self.seat.set(Some(seat));
    }
}

#[derive(Default)]
pub struct Members(RefCell<BTreeMap<u64, Rc<Member>>>);

impl Members {
    pub fn enter(&self, slot: Slot) -> Rc<Member> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let (export, seat) = (RefCell::default(), Cell::default());
        let member = Rc::new(Member { id, export, seat, _slot: slot });
        self.0.borrow_mut().insert(id, Rc::clone(&member));
        member
    }

    pub fn leave(&self, id: u64) {
        let gone = self.0.borrow_mut().remove(&id);
        drop(gone);
    }

    pub fn len(&self) -> usize {
        self.0.borrow().len()
    }

    /// All of them, to be called: they may leave meanwhile.
    pub fn all(&self) -> Vec<Rc<Member>> {
        self.0.borrow().values().cloned().collect()
    }

    pub fn users(&self, export: &Rc<NbdExport>) -> Vec<Rc<Member>> {
        self.0.borrow().values().filter(|member| member.uses(export)).cloned().collect()
    }

    /// The seat whose context serves the fewest clients of all exports; the first of these.
    pub fn least_busy(&self, seats: &[Seat]) -> Option<usize> {
        let mut busy = vec![0usize; seats.len()];
        for member in self.0.borrow().values() {
            member.at_seat(|its| {
                let same = seats.iter().position(|seat| seat.home() == its.home());
                same.into_iter().for_each(|place| busy[place] += 1);
            });
        }
        (0..seats.len()).min_by_key(|place| busy[*place])
    }
}

/// Tells a server of clients that have ended in other contexts. Any thread.
pub struct Mail {
    ended: Mutex<Vec<u64>>,
    arrived: RemoteBottomHalf,
}

impl Mail {
    /// `arrived` is scheduled when there is something to [take](Self::take).
    pub fn new(arrived: RemoteBottomHalf) -> Arc<Mail> {
        Arc::new(Mail { ended: Mutex::default(), arrived })
    }

    /// The clients that have ended since the last call.
    pub fn take(&self) -> Vec<u64> {
        std::mem::take(&mut *self.ended.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A client that has moved. Dropping it tells its server that the client is gone.
pub struct Absent {
    id: u64,
    mail: Arc<Mail>,
}

impl Absent {
    pub fn new(id: u64, mail: &Arc<Mail>) -> Absent {
        Absent { id, mail: Arc::clone(mail) }
    }
}

impl Drop for Absent {
    fn drop(&mut self) {
        self.mail.ended.lock().unwrap_or_else(PoisonError::into_inner).push(self.id);
        self.mail.arrived.schedule();
    }
}
