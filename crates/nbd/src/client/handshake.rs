//! The handshake as a client: from the server's greeting to the choice of an export.

use std::io::{self, ErrorKind};

use coblk_aio::Co;

use crate::client::session::Facts;
use crate::client::starttls;
use crate::client::target::Target;
use crate::client::wire::Wire;
use crate::protocol::fields::Fields;
use crate::protocol::option_reply::{self, OptionReply};
use crate::protocol::reply::Style;
use crate::protocol::*;

/// Replies to one option; a server that has more does not want to end.
const MAX_REPLIES: usize = 64;

/// Negotiates; what the server is like. The caller ends it if it takes too long.
///
/// # Errors
/// If the server refuses, or breaks the protocol.
pub fn negotiate(co: &Co<'_>, wire: &Wire, target: &Target) -> io::Result<Facts> {
    let mut talk = Talk { co, wire, target, style: Style::Simple, context: None };
    let mut greeting = [0; 16];
    wire.read(co, &mut greeting)?;
    let mut fields = Fields(&greeting);
    match (fields.u64(), fields.u64()) {
        (Some(NBDMAGIC), Some(IHAVEOPT)) => talk.options(),
        // The protocol before there were options.
        (Some(NBDMAGIC), Some(OLDSTYLE)) => talk.oldstyle(),
        _ => Err(broken("it is not an NBD server")),
    }
}

/// Second word of a server that has one export and no options.
const OLDSTYLE: u64 = 0x0000_4202_8186_1253;

struct Talk<'a, 'co> {
    co: &'a Co<'co>,
    wire: &'a Wire,
    target: &'a Target,
    style: Style,
    context: Option<u32>,
}

impl Talk<'_, '_> {
    fn options(&mut self) -> io::Result<Facts> {
        let server = u16::from_be_bytes(self.array()?);
        if server & FLAG_FIXED_NEWSTYLE == 0 {
            return Err(broken("the server is too old: it has no fixed newstyle negotiation"));
        }
        let no_zeroes = server & FLAG_NO_ZEROES;
        let own = u32::from(FLAG_FIXED_NEWSTYLE | no_zeroes);
        self.wire.write(self.co, &own.to_be_bytes())?;
        self.secure()?;
        if self.choose(OPT_EXTENDED_HEADERS)? {
            self.style = Style::Extended;
        } else if self.choose(OPT_STRUCTURED_REPLY)? {
            self.style = Style::Structured;
        }
        if self.style >= Style::Structured {
            self.set_context()?;
        }
        if let Some(bitmap) = &self.target.bitmap
            && self.context.is_none()
        {
            let text = format!("the server has no metadata context '{bitmap}'");
            return Err(io::Error::new(ErrorKind::InvalidInput, text));
        }
        let facts = match self.go()? {
            Some(facts) => facts,
            None => self.export_name(no_zeroes != 0)?,
        };
        facts.check()?;
        Ok(facts)
    }

    fn oldstyle(&mut self) -> io::Result<Facts> {
        if !self.target.export.is_empty() || self.target.wants_tls() {
            return Err(broken("the server is too old: it has neither names nor TLS"));
        }
        let size = u64::from_be_bytes(self.array()?);
        let flags = u32::from_be_bytes(self.array()?) as u16;
        self.skip(124)?;
        let facts = Facts { size, flags, style: Style::Simple, blocks: None, context: None };
        facts.check()?;
        Ok(facts)
    }

    fn secure(&mut self) -> io::Result<()> {
        if !self.target.wants_tls() {
            return Ok(());
        }
        self.send(OPT_STARTTLS, &[])?;
        let (reply, text) = self.reply(OPT_STARTTLS)?;
        if reply.kind != REP_ACK {
            return Err(refused("TLS", &reply, &text));
        }
        starttls::begin(self.co, self.wire, self.target)
    }

    /// Whether the server takes an option without data.
    fn choose(&mut self, option: u32) -> io::Result<bool> {
        self.send(option, &[])?;
        let (reply, text) = self.reply(option)?;
        match reply.kind {
            REP_ACK => Ok(true),
            REP_ERR_TLS_REQD => Err(refused("to talk in the clear", &reply, &text)),
            _ if reply.is_error() => Ok(false),
            _ => Err(broken("the server answers an option with what is no answer to it")),
        }
    }

    fn set_context(&mut self) -> io::Result<()> {
        let name = self.target.bitmap.as_deref().unwrap_or(BASE_ALLOCATION);
        let mut data = counted(&self.target.export);
        data.extend_from_slice(&1u32.to_be_bytes());
        data.extend_from_slice(&counted(name));
        self.send(OPT_SET_META_CONTEXT, &data)?;
        for _ in 0..MAX_REPLIES {
            let (reply, data) = self.reply(OPT_SET_META_CONTEXT)?;
            match reply.kind {
                REP_META_CONTEXT => {
                    let (id, found) = option_reply::context(&data)?;
                    if found != name.as_bytes() || self.context.replace(id).is_some() {
                        return Err(broken("the server sets contexts that it was not asked for"));
                    }
                }
                REP_ACK => return Ok(()),
                // Without them extents are not known.
                _ if reply.is_error() => {
                    self.context = None;
                    return Ok(());
                }
                _ => return Err(broken("the server answers with what is no metadata context")),
            }
        }
        Err(broken("the server does not end its replies"))
    }

    /// Chooses the export. `None` if the server only knows the older way.
    fn go(&mut self) -> io::Result<Option<Facts>> {
        let mut data = counted(&self.target.export);
        data.extend_from_slice(&1u16.to_be_bytes());
        data.extend_from_slice(&INFO_BLOCK_SIZE.to_be_bytes());
        self.send(OPT_GO, &data)?;
        let (mut export, mut blocks) = (None, None);
        for _ in 0..MAX_REPLIES {
            let (reply, data) = self.reply(OPT_GO)?;
            match reply.kind {
                REP_INFO => match option_reply::information(&data)? {
                    (INFO_EXPORT, data) => export = Some(option_reply::export(data)?),
                    (INFO_BLOCK_SIZE, data) => {
                        let [min, _, max] = option_reply::block_sizes(data)?;
                        blocks = Some((min, max));
                    }
                    _ => {}
                },
                REP_ACK => {
                    let (size, flags) =
                        export.ok_or_else(|| broken("the server tells nothing of its export"))?;
                    let Talk { style, context, .. } = *self;
                    return Ok(Some(Facts { size, flags, style, blocks, context }));
                }
                REP_ERR_UNSUP if self.style < Style::Extended => return Ok(None),
                _ if reply.is_error() => {
                    return Err(refused(
                        &format!("export '{}'", self.target.export),
                        &reply,
                        &data,
                    ));
                }
                _ => return Err(broken("the server answers with what is no information")),
            }
        }
        Err(broken("the server does not end its replies"))
    }

    /// The older way: a server that has no such export hangs up.
    fn export_name(&mut self, no_zeroes: bool) -> io::Result<Facts> {
        self.send(OPT_EXPORT_NAME, self.target.export.as_bytes())?;
        let size = u64::from_be_bytes(self.array()?);
        let flags = u16::from_be_bytes(self.array()?);
        if !no_zeroes {
            self.skip(124)?;
        }
        let Talk { style, context, .. } = *self;
        Ok(Facts { size, flags, style, blocks: None, context })
    }

    fn send(&self, option: u32, data: &[u8]) -> io::Result<()> {
        let mut bytes = IHAVEOPT.to_be_bytes().to_vec();
        bytes.extend_from_slice(&option.to_be_bytes());
        // Two strings at most.
        bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
        bytes.extend_from_slice(data);
        self.wire.write(self.co, &bytes)
    }

    fn reply(&self, option: u32) -> io::Result<(OptionReply, Vec<u8>)> {
        let header: [u8; option_reply::HEADER_LEN] = self.array()?;
        let reply = OptionReply::parse(&header, option)?;
        let mut data = vec![0; reply.len as usize];
        self.wire.read(self.co, &mut data)?;
        Ok((reply, data))
    }

    fn array<const N: usize>(&self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.wire.read(self.co, &mut bytes)?;
        Ok(bytes)
    }

    fn skip(&self, len: usize) -> io::Result<()> {
        self.wire.read(self.co, &mut vec![0; len])
    }
}

fn counted(text: &str) -> Vec<u8> {
    // Names have 4096 bytes at most.
    let mut bytes = (text.len() as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

/// A refusal of the server, with the reason that it gives.
fn refused(what: &str, reply: &OptionReply, text: &[u8]) -> io::Error {
    let text = String::from_utf8_lossy(text);
    let text: String = text.chars().filter(|it| !it.is_control()).take(200).collect();
    let why = match reply.kind {
        REP_ERR_UNSUP => "it is not supported",
        REP_ERR_POLICY => "it is not allowed",
        REP_ERR_TLS_REQD => "TLS is required",
        REP_ERR_UNKNOWN => "there is none",
        _ => "an error",
    };
    let text = match text.is_empty() {
        true => format!("the server refuses {what}: {why}"),
        false => format!("the server refuses {what}: {why} ({text})"),
    };
    io::Error::new(ErrorKind::InvalidInput, text)
}
