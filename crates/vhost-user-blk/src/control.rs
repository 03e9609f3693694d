//! The control thread of a connection: [`serve`] reads messages until there are no more, or one is
//! wrong.

use std::io;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vhost::vhost_user::{BackendReqHandler, Error, Result};

use crate::messages::{Early, SET_LOG_FD, peek_header, take_early};
use crate::session::{Offer, Session};

pub(crate) fn serve(offer: &Arc<Offer>, socket: UnixStream) {
    let mut messages = match Messages::new(offer, socket) {
        Ok(messages) => messages,
        Err(error) => {
            return tracing::warn!(export = offer.name, %error, "cannot serve a front end");
        }
    };
    tracing::info!(export = offer.name, "a front end connects");
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        loop {
            match messages.handle_next() {
                Ok(()) | Err(Error::SocketRetry(_)) => {}
                Err(error) => return error,
            }
        }
    }));
    match outcome {
        Ok(Error::Disconnected) => tracing::info!(export = offer.name, "the front end is gone"),
        Ok(error) => {
            tracing::warn!(export = offer.name, %error, "the front end loses its connection");
        }
        Err(_) => tracing::error!(export = offer.name, "a message of the front end panicked"),
    }
    messages.session().end();
}

/// The messages of a connection, and the session that answers them.
struct Messages {
    socket: UnixStream,
    handler: BackendReqHandler<Mutex<Session>>,
    session: Arc<Mutex<Session>>,
}

impl Messages {
    fn new(offer: &Arc<Offer>, socket: UnixStream) -> io::Result<Messages> {
        let own = socket.try_clone()?;
        let session = Arc::new(Mutex::new(Session::new(offer, socket.try_clone()?)?));
        let handler = BackendReqHandler::from_stream(socket, Arc::clone(&session));
        Ok(Messages { socket: own, handler, session })
    }

    fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle_next(&mut self) -> Result<()> {
        let header = peek_header(&self.socket).map_err(Error::SocketError)?;
        self.session().check_turn(header.as_ref())?;
        let early = header.map(|header| take_early(&self.socket, &header)).transpose();
        match early.map_err(Error::SocketError)?.flatten() {
            Some(Early::Acknowledged(number)) => {
                let mut session = self.session();
                session.memory_is_acknowledged(number)
            }
            Some(Early::Channel(channel, answer)) => self.session().set_channel(channel, answer),
            Some(Early::LogNotifier(notifier, answer)) => {
                let mut session = self.session();
                session.set_log_notifier(notifier)?;
                session.acknowledge(SET_LOG_FD, answer)
            }
            Some(Early::SkipDrain(index)) => self.session().stop_without_drain(index),
            Some(Early::Config(asked)) => self.session().answer_config(&asked),
            None => self.handler.handle_request(),
        }
    }
}
