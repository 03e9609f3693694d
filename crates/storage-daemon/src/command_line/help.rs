//! What `--help` and `help` in place of a text print.

use coblk::qapi::Schema;

use super::Job;
use crate::objects::ObjectTypes;
use crate::options::CHARDEV_BACKENDS;

pub(super) const HELP: &str = "\
Usage: coblk-storage-daemon [options]
Disk images for other processes, over NBD and vhost-user, and as files of this
machine. The options are those of qemu-storage-daemon; they are done in the
order in which they are given.

  -h, --help         print this text and exit
  -V, --version      print the version and exit
  -T, --trace [enable=]PATTERN[,events=FILE][,file=FILE]
                     write events to the standard error, or to a file;
                     '--trace help' lists them

  --blockdev [driver=]DRIVER,node-name=NAME[,read-only=on|off]
             [,auto-read-only=on|off][,discard=ignore|unmap]
             [,cache.direct=on|off][,cache.no-flush=on|off][,...]
                     open a disk image; there is file, host_device, raw,
                     null-co, null-aio, throttle, blkdebug, blklogwrites,
                     copy-before-write and snapshot-access

  --export [type=]nbd,id=ID,node-name=NODE[,name=NAME][,description=TEXT]
           [,writable=on|off][,writethrough=on|off]
           [,rerror=POLICY][,werror=POLICY]
                     show a node to clients of the NBD server
  --export [type=]vhost-user-blk,id=ID,node-name=NODE,
           addr.type=unix,addr.path=PATH[,writable=on|off]
           [,logical-block-size=BYTES][,num-queues=N][,serial=TEXT]
           [,iothread=ID | ,iothread.0=ID,iothread.1=ID...]
           [,writethrough=on|off][,rerror=POLICY][,werror=POLICY]
                     show a node as a disk for a virtual machine
  --export [type=]vhost-user-blk,id=ID,node-name=NODE,
           addr.type=fd,addr.str=FD[,...]
                     the same, on a socket that was inherited
  --export [type=]fuse,id=ID,node-name=NODE,mountpoint=FILE
           [,writable=on|off][,growable=on|off][,allow-other=off|on|auto]
           [,io-uring=on|off]
           [,iothread=ID | ,iothread.0=ID,iothread.1=ID...]
           [,writethrough=on|off][,rerror=POLICY][,werror=POLICY]
                     show a node as a file, in the place of one that is there
                     POLICY is what happens when a request fails: report (the
                     default), ignore, stop, or enospc: stop if the disk is full

  --nbd-server addr.type=inet,addr.host=HOST,addr.port=PORT
               [,max-connections=N][,handshake-max-seconds=N][,tls-creds=ID]
  --nbd-server addr.type=unix,addr.path=PATH[,...]
  --nbd-server addr.type=vsock,addr.cid=CID,addr.port=PORT[,...]
  --nbd-server addr.type=fd,addr.str=FD[,...]
                     start an NBD server

  --object iothread,id=ID[,PROPERTY=VALUE...]
                     start a thread that exports can be served by
  --object throttle-group,id=ID[,limits.iops-total=N][,limits.bps-total=N][,...]
                     limits for the nodes of driver throttle
  --object secret,id=ID,file=PATH|data=TEXT[,format=raw|base64][,keyid=ID,iv=IV]
                     a password, for drivers that need one
  --object tls-creds-x509,id=ID,dir=DIR,endpoint=server[,verify-peer=on|off]
                     certificates for --nbd-server ...,tls-creds=ID
  --object help      list the types of objects
  --object TYPE,help list the properties of a type

  --chardev socket,id=ID,path=PATH,server=on[,wait=on|off]
  --chardev socket,id=ID,host=HOST,port=PORT[,server=on][,wait=on|off][,...]
                     the place of a monitor; with wait=on, the default, the
                     daemon starts when a client has connected
  --chardev stdio,id=ID[,signal=on|off]
                     the same on the standard input and output
  --monitor [chardev=]ID[,mode=control][,pretty=on|off]
                     a QMP monitor

  --metrics unix:PATH | HOST:PORT
                     serve metrics for Prometheus: GET /metrics

  --dump-config      do what the other options say, print the command line that
                     makes the same, and exit
  --daemonize        go to the background when everything has started
  --pidfile PATH     write the process number to a file, which is locked

Any of these texts may be JSON: --blockdev '{\"driver\": \"file\", ...}'
";

/// The answer to an option that asks for help.
pub(super) fn of(job: &Job, types: &ObjectTypes) -> Option<String> {
    let text = job.text.to_str()?;
    let text = text.strip_suffix("help").or_else(|| text.strip_suffix('?'))?;
    match (job.option, text) {
        ("chardev", "") => Some(format!(
            "Available chardev backend types: \n  {}\n",
            CHARDEV_BACKENDS.join("\n  ")
        )),
        ("object", "") => {
            let names = types.names().into_iter().map(|name| format!("  {name}\n"));
            Some(format!("List of user creatable objects:\n{}", names.collect::<String>()))
        }
        ("object", text) => properties(text.strip_suffix(',')?, types),
        _ => None,
    }
}

/// The properties of a type of objects, and what each takes. `None` if there is no such type.
fn properties(kind: &str, types: &ObjectTypes) -> Option<String> {
    let schema = types.schema_of(kind)?.ok()?;
    let mut lines = Vec::new();
    collect("", &schema, &mut lines);
    lines.sort_unstable();
    Some(format!("{kind} options:\n{}", lines.concat()))
}

fn collect(name: &str, schema: &Schema, lines: &mut Vec<String>) {
    let takes = match schema {
        Schema::Object(shape) => {
            for member in &shape.members {
                let dot = if name.is_empty() { "" } else { "." };
                collect(&format!("{name}{dot}{}", member.name), &member.schema, lines);
            }
            return;
        }
        Schema::Builtin(kind @ ("str" | "bool")) => *kind,
        Schema::Enum(words) => &words.join("|"),
        Schema::Builtin(_) => "int",
        _ => "any",
    };
    lines.push(format!("  {name}=<{takes}>\n"));
}
