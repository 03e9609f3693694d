//! The handshake, of the kind called fixed newstyle: options until the client has chosen an export.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::{Co, trace_event};

use crate::protocol::fields::Fields;
use crate::protocol::option::{self, GoOption, MetaOption, Refusal};
use crate::protocol::reply::Style;
use crate::protocol::*;
use crate::server::client::Client;
use crate::server::contexts::{self, Context};
use crate::server::export::NbdExport;
use crate::server::message::Message;
use crate::server::receiver::{CAPACITY, Receiver};
use crate::server::reception::Reception;
use crate::server::rules::{Rules, Terms};
use crate::server::starttls;

/// What a client has chosen.
pub struct Chosen {
    pub export: Rc<NbdExport>,
    pub terms: Terms,
}

/// Negotiates. `None` if the client wants nothing more.
pub fn negotiate(
    co: &Co<'_>,
    reception: &Reception,
    client: &Rc<Client>,
    receiver: &mut Receiver,
) -> io::Result<Option<Chosen>> {
    let mut greeting = Vec::with_capacity(18);
    greeting.extend_from_slice(&NBDMAGIC.to_be_bytes());
    greeting.extend_from_slice(&IHAVEOPT.to_be_bytes());
    greeting.extend_from_slice(&(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
    client.link.post(Message::raw(greeting));
    let flags = Fields(receiver.exact(co, &client.link, 4)?).u32().unwrap_or(0);
    let known = u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES);
    if flags & !known != 0 {
        return Err(broken("unknown flags of the client"));
    }
    let mut negotiation = Negotiation {
        reception,
        client,
        fixed: flags & u32::from(FLAG_FIXED_NEWSTYLE) != 0,
        no_zeroes: flags & u32::from(FLAG_NO_ZEROES) != 0,
        style: Style::Simple,
        contexts: None,
    };
    loop {
        client.link.give_way(co);
        let mut header = Fields(receiver.exact(co, &client.link, 16)?);
        let (magic, kind, len) = (header.u64(), header.u32(), header.u32());
        let (Some(IHAVEOPT), Some(kind), Some(len)) = (magic, kind, len) else {
            return Err(broken("not an option"));
        };
        trace_event!("nbd_negotiate_options_check_option", option = kind, length = len);
        let data = if len as usize <= CAPACITY {
            Some(receiver.exact(co, &client.link, len as usize)?)
        } else if kind == OPT_EXPORT_NAME {
            return Err(broken("a name of more than 4096 bytes"));
        } else {
            receiver.skip(co, &client.link, u64::from(len))?;
            None
        };
        match negotiation.option(co, kind, data)? {
            Next::Go(chosen) => return Ok(Some(chosen)),
            Next::Stop => return Ok(None),
            Next::Secure => {
                client.link.wait_sent(co)?;
                if !receiver.is_empty() {
                    return Err(broken("bytes in the clear behind STARTTLS"));
                }
                starttls::begin(co, reception, client)?;
                negotiation.forget();
            }
            Next::Option => {}
        }
        client.link.wait_sent(co)?;
    }
}

/// What an option leads to.
enum Next {
    Option,
    Go(Chosen),
    /// TLS.
    Secure,
    Stop,
}

struct Negotiation<'a> {
    reception: &'a Reception,
    client: &'a Rc<Client>,
    /// The client understands replies to options.
    fixed: bool,
    no_zeroes: bool,
    style: Style,
    /// The export for which the client has chosen metadata contexts, and these.
    contexts: Option<(Rc<NbdExport>, Arc<[Context]>)>,
}

impl Negotiation<'_> {
    /// Answers an option. `data` is unset if there was too much of it, and that was passed over.
    ///
    /// # Errors
    /// If the connection cannot go on.
    fn option(&mut self, co: &Co<'_>, kind: u32, data: Option<&[u8]>) -> io::Result<Next> {
        if !self.fixed && kind != OPT_EXPORT_NAME {
            return Err(broken("an option that only fixed newstyle has"));
        }
        if starttls::is_missing(self.reception, self.client) && kind != OPT_STARTTLS {
            return self.refuse_in_the_clear(co, kind);
        }
        let data = match (data, kind) {
            (Some(data), _) => data,
            (None, OPT_INFO | OPT_GO | OPT_LIST_META_CONTEXT | OPT_SET_META_CONTEXT) => {
                self.reply(kind, REP_ERR_TOO_BIG, b"the option is too long");
                return Ok(Next::Option);
            }
            // To the others it is all the same how much there was.
            (None, _) => &[0],
        };
        let outcome = match kind {
            OPT_EXPORT_NAME => return self.export_name(data).map(Next::Go),
            OPT_ABORT => {
                self.reply(kind, REP_ACK, &[]);
                return Ok(Next::Stop);
            }
            OPT_LIST => self.list(data),
            OPT_INFO | OPT_GO => match self.info(kind, data) {
                Ok(Some(chosen)) if kind == OPT_GO => return Ok(Next::Go(chosen)),
                outcome => outcome.map(|_| ()),
            },
            OPT_STARTTLS => match self.starttls(data) {
                Ok(true) => return Ok(Next::Secure),
                outcome => outcome.map(|_| ()),
            },
            OPT_STRUCTURED_REPLY => self.style_chosen(kind, data, Style::Structured),
            OPT_EXTENDED_HEADERS => self.style_chosen(kind, data, Style::Extended),
            OPT_LIST_META_CONTEXT | OPT_SET_META_CONTEXT => self.meta(kind, data),
            _ => {
                self.reply(kind, REP_ERR_UNSUP, b"the option is not supported");
                Ok(())
            }
        };
        if let Err(refusal) = outcome {
            self.reply(kind, REP_ERR_INVALID, refusal.as_bytes());
        }
        Ok(Next::Option)
    }

    /// Only TLS is possible. A client may try on, unless it has no way to be told.
    fn refuse_in_the_clear(&self, co: &Co<'_>, kind: u32) -> io::Result<Next> {
        if kind == OPT_EXPORT_NAME {
            let why = "it has chosen an export without TLS";
            self.reception.log_refusal(self.client, co.context().now_ns(), &why);
            return Err(broken("an export chosen without TLS"));
        }
        self.reply(kind, REP_ERR_TLS_REQD, b"the option is not permitted before TLS");
        Ok(if kind == OPT_ABORT { Next::Stop } else { Next::Option })
    }

    /// Whether TLS is to begin.
    fn starttls(&self, data: &[u8]) -> Result<bool, Refusal> {
        if !data.is_empty() {
            return Err("STARTTLS has no data");
        }
        if self.client.link.transport.is_secure() {
            return Err("TLS has begun already");
        }
        let possible = starttls::is_possible(self.reception);
        if possible {
            self.reply(OPT_STARTTLS, REP_ACK, &[]);
        } else {
            self.reply(OPT_STARTTLS, REP_ERR_POLICY, b"TLS is not configured");
        }
        Ok(possible)
    }

    /// What was agreed on in the clear does not count.
    fn forget(&mut self) {
        self.style = Style::Simple;
        self.contexts = None;
    }

    /// The old way to choose an export, without a way to say that there is none.
    fn export_name(&mut self, data: &[u8]) -> io::Result<Chosen> {
        if self.style == Style::Extended {
            return Err(broken("an export chosen the old way, with extended headers"));
        }
        let name = option::name(data).map_err(broken)?;
        let export = self.reception.exports.get(name).ok_or_else(|| broken("no such export"))?;
        let chosen = self.chosen(export).map_err(broken)?;
        let mut bytes = chosen.terms.rules.size.to_be_bytes().to_vec();
        bytes.extend_from_slice(&flags(&chosen.export, self.style).to_be_bytes());
        if !self.no_zeroes {
            bytes.extend_from_slice(&[0; 124]);
        }
        self.client.link.post(Message::raw(bytes));
        Ok(chosen)
    }

    fn list(&mut self, data: &[u8]) -> Result<(), Refusal> {
        if !data.is_empty() {
            return Err("LIST has no data");
        }
        for (name, description) in self.reception.exports.names() {
            let mut entry = (name.len() as u32).to_be_bytes().to_vec();
            entry.extend_from_slice(name.as_bytes());
            entry.extend_from_slice(description.as_bytes());
            self.reply(OPT_LIST, REP_SERVER, &entry);
        }
        self.reply(OPT_LIST, REP_ACK, &[]);
        Ok(())
    }

    /// INFO and GO. Returns what would be chosen, if there is such an export.
    fn info(&mut self, kind: u32, data: &[u8]) -> Result<Option<Chosen>, Refusal> {
        let asked = GoOption::parse(data)?;
        let Some(export) = self.reception.exports.get(asked.name) else {
            self.reply(kind, REP_ERR_UNKNOWN, b"there is no such export");
            return Ok(None);
        };
        let chosen = self.chosen(export)?;
        let export = &chosen.export;
        if asked.wants(INFO_NAME) {
            self.information(kind, INFO_NAME, export.name.as_bytes());
        }
        if let Some(description) = &export.description
            && asked.wants(INFO_DESCRIPTION)
        {
            self.information(kind, INFO_DESCRIPTION, description.as_bytes());
        }
        let sizes = block_sizes(export, asked.wants(INFO_BLOCK_SIZE) || kind == OPT_INFO);
        let sizes: Vec<u8> = sizes.iter().flat_map(|size| size.to_be_bytes()).collect();
        self.information(kind, INFO_BLOCK_SIZE, &sizes);
        let mut facts = chosen.terms.rules.size.to_be_bytes().to_vec();
        facts.extend_from_slice(&flags(export, self.style).to_be_bytes());
        self.information(kind, INFO_EXPORT, &facts);
        self.reply(kind, REP_ACK, &[]);
        Ok(Some(chosen))
    }

    fn style_chosen(&mut self, kind: u32, data: &[u8], style: Style) -> Result<(), Refusal> {
        if !data.is_empty() {
            return Err("the option has no data");
        }
        if self.style == Style::Extended && style == Style::Structured {
            self.reply(kind, REP_ERR_EXT_HEADER_REQD, b"extended headers were negotiated");
            return Ok(());
        }
        if self.style == style {
            return Err("negotiated already");
        }
        self.style = style;
        self.reply(kind, REP_ACK, &[]);
        Ok(())
    }

    fn meta(&mut self, kind: u32, data: &[u8]) -> Result<(), Refusal> {
        let sets = kind == OPT_SET_META_CONTEXT;
        if sets {
            // Whatever comes of it, what was chosen before is not any more.
            self.contexts = None;
        }
        if self.style < Style::Structured {
            return Err("structured replies were not negotiated");
        }
        let asked = MetaOption::parse(data)?;
        let Some(export) = self.reception.exports.get(asked.name) else {
            self.reply(kind, REP_ERR_UNKNOWN, b"there is no such export");
            return Ok(());
        };
        let mut found = Context::of(&export);
        let lists_all = !sets && asked.is_empty();
        found.retain(|(_, name)| {
            lists_all || asked.queries().any(|query| contexts::is_meant(name, query, !sets))
        });
        for (context, name) in &found {
            let mut data = context.id().to_be_bytes().to_vec();
            data.extend_from_slice(name.as_bytes());
            self.reply(kind, REP_META_CONTEXT, &data);
        }
        if sets {
            self.contexts = Some((export, found.into_iter().map(|(context, _)| context).collect()));
        }
        self.reply(kind, REP_ACK, &[]);
        Ok(())
    }

    fn chosen(&self, export: Rc<NbdExport>) -> Result<Chosen, Refusal> {
        // An export of the same name may be another one by now.
        let asked = self.contexts.as_ref().filter(|(of, _)| Rc::ptr_eq(of, &export));
        let contexts = asked.map_or_else(|| Arc::from([]), |(_, contexts)| Arc::clone(contexts));
        let rules = Rules {
            size: export.length().ok_or("the export has no medium")?,
            read_only: export.read_only,
            structured: self.style >= Style::Structured,
            extended: self.style == Style::Extended,
            contexts: !contexts.is_empty(),
        };
        let (write_through, bitmaps) = (export.write_through, Arc::from(&export.bitmaps[..]));
        let terms = Terms { style: self.style, contexts, rules, write_through, bitmaps };
        Ok(Chosen { export, terms })
    }

    fn information(&self, option: u32, kind: u16, data: &[u8]) {
        let mut info = kind.to_be_bytes().to_vec();
        info.extend_from_slice(data);
        self.reply(option, REP_INFO, &info);
    }

    fn reply(&self, option: u32, kind: u32, data: &[u8]) {
        let mut bytes = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
        bytes.extend_from_slice(&option.to_be_bytes());
        bytes.extend_from_slice(&kind.to_be_bytes());
        // Data is a few strings at most.
        bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
        bytes.extend_from_slice(data);
        self.client.link.post(Message::raw(bytes));
    }
}

/// Smallest, preferred and longest request. One that is no whole number of blocks is served all the
/// same, so a client that did not ask is not bothered.
fn block_sizes(export: &NbdExport, asked: bool) -> [u32; 3] {
    let block = export.node().map_or(1, |node| node.limits().request_alignment);
    [if asked { block.min(65536) } else { 1 }, block.max(4096), MAX_PAYLOAD as u32]
}

/// What the protocol calls transmission flags.
fn flags(export: &NbdExport, style: Style) -> u16 {
    // Connections share one node, and a flush there covers the writes of all that were answered, in all
    // contexts.
    let mut flags = TRANSMISSION_HAS_FLAGS
        | TRANSMISSION_SEND_FLUSH
        | TRANSMISSION_SEND_FUA
        | TRANSMISSION_SEND_CACHE
        | TRANSMISSION_CAN_MULTI_CONN;
    if export.read_only {
        flags |= TRANSMISSION_READ_ONLY;
    } else {
        flags |=
            TRANSMISSION_SEND_TRIM | TRANSMISSION_SEND_WRITE_ZEROES | TRANSMISSION_SEND_FAST_ZERO;
    }
    if style >= Style::Structured {
        flags |= TRANSMISSION_SEND_DF;
    }
    flags
}
