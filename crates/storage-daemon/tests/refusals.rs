//! What the daemon cannot do is refused by its name, with exit status 1.

mod util;

use util::{Place, stderr};

const DISK: &str = "--blockdev file,node-name=disk,filename=@/disk.img ";
const SERVER: &str = "--nbd-server addr.type=unix,addr.path=@/nbd.sock ";

/// What is said of credentials of a client, and of a server, that are not there.
#[cfg(feature = "tls")]
const TLS: [&str; 2] = ["Unable to access credentials x", "Unable to access credentials"];
#[cfg(not(feature = "tls"))]
const TLS: [&str; 2] = ["built without TLS", "built without TLS"];

/// Each command line, and what its error must say.
const REFUSED: &[(&str, &str, &str)] = &[
    ("", "--frob", "--frob"),
    ("", "frob", "frob"),
    ("", "--blockdev", "--blockdev"),
    (
        "",
        "--blockdev driver=vmdk,node-name=n,file=disk",
        "does not accept value 'vmdk'; there is blkdebug, ",
    ),
    ("", "--blockdev file,node-name=n,filename=@/none", "none"),
    ("", "--blockdev file,node-name=n,filename=@/disk.img,frob=1", "'frob'"),
    ("", "--blockdev file,filename=@/disk.img", "'node-name' must be specified for the root node"),
    ("", "--blockdev {\"driver\":\"null-co\"", "JSON"),
    (DISK, "--blockdev null-co,node-name=disk", "Duplicate nodes with node-name='disk'"),
    (DISK, "--export nbd,id=e,node-name=disk", "NBD server not running"),
    (SERVER, "--export nbd,id=e,node-name=disk", "Cannot find device='' nor node-name='disk'"),
    (DISK, "--export fuse,id=e,node-name=disk,mountpoint=@/m", "/m': No such file or directory"),
    (DISK, "--export fuse,id=e,node-name=disk", "Parameter 'mountpoint' is missing"),
    (
        DISK,
        "--export fuse,id=e,node-name=disk,mountpoint=@/m,allow-other=maybe",
        "Parameter 'allow-other' does not accept value 'maybe'",
    ),
    (DISK, "--export vduse-blk,id=e,node-name=disk,name=v", "does not accept value 'vduse-blk'"),
    (DISK, "--export id=e,node-name=disk", "Parameter 'type' is missing"),
    (DISK, "--export nbd,node-name=disk", "Parameter 'id' is missing"),
    (DISK, "--export nbd,id=e", "Parameter 'node-name' is missing"),
    (DISK, "--export nbd,id=1e,node-name=disk", "Invalid block export id"),
    (DISK, "--export nbd,id=e,node-name=disk,frob=1", "Parameter 'frob' is unexpected"),
    (DISK, "--export nbd,id=e,node-name=disk,num-queues=1", "Parameter 'num-queues' is unexpected"),
    (
        DISK,
        "--export nbd,id=e,node-name=disk,allow-inactive=maybe",
        "Parameter 'allow-inactive' expects 'on' or 'off'",
    ),
    (DISK, "--export {'type':'nbd','id':'e','id':'f','node-name':'disk'}", "duplicate key"),
    (
        DISK,
        "--export {'type':'nbd','id':'e','node-name':'disk'}}",
        "Expecting at most one JSON value",
    ),
    (
        "",
        "--blockdev {\"driver\":\"null-co\",\"node-name\":\"a\",\"node-name\":\"b\"}",
        "duplicate key",
    ),
    ("", "--blockdev {'driver':'null-co','node-name':'n'", "JSON parse error, premature EOI"),
    ("", "--blockdev null-co,node-name=n,size=1G", "Parameter 'size' expects integer"),
    (
        "",
        "--blockdev raw,node-name=n,file.driver=null-co,file.active=off",
        "node 'n' needs node '#block1' to be active, and it is inactive",
    ),
    (
        "",
        "--blockdev null-co,node-name=n,read-zeroes",
        "Expected '=' after parameter 'read-zeroes'",
    ),
    ("", "--object iothread,id=t,poll-max-ns=1k", "Parameter 'poll-max-ns' expects integer"),
    (DISK, "--export nbd,id=e,node-name=disk,writable=1", "'writable' expects 'on' or 'off'"),
    (
        DISK,
        "--export nbd,id=e,node-name=disk,werror=maybe",
        "'werror' does not accept value 'maybe'",
    ),
    (DISK, "--export nbd,id=e,node-name=disk,iothread=t", "iothread \"t\" not found"),
    (DISK, "--export vhost-user-blk,id=e,node-name=disk", "Parameter 'addr' is missing"),
    (DISK, "--export vhost-user-blk,id=e,node-name=disk,addr.type=unix", "'addr.path' is missing"),
    (
        DISK,
        "--export vhost-user-blk,id=e,node-name=disk,addr.type=inet,addr.host=a,addr.port=1",
        "Only socket address types 'unix' and 'fd' are supported",
    ),
    (
        DISK,
        "--export vhost-user-blk,id=e,node-name=disk,addr.type=unix,addr.path=@/v,num-queues=0",
        "num-queues must be greater than 0",
    ),
    (
        DISK,
        "--export vhost-user-blk,id=e,node-name=disk,addr.type=unix,addr.path=@/v,num-queues=65536",
        "Parameter 'num-queues' expects uint16",
    ),
    (
        DISK,
        "--export vhost-user-blk,id=e,node-name=disk,addr.type=unix,addr.path=@/v,serial=123456789012345678901",
        "parameter serial must not be longer than 20 bytes",
    ),
    (
        DISK,
        "--export vhost-user-blk,id=e,node-name=disk,addr.type=unix,addr.path=@/v,logical-block-size=1000",
        "logical-block-size must be a power of 2 between 512 and 2097152",
    ),
    (
        DISK,
        "--export vhost-user-blk,id=e,node-name=disk,addr.type=unix,addr.path=@/v,name=x",
        "Parameter 'name' is unexpected",
    ),
    (
        DISK,
        "--export vhost-user-blk,id=e,node-name=disk,addr.type=unix,addr.path=@/none/v",
        "Failed to bind socket to",
    ),
    (SERVER, "--nbd-server addr.type=unix,addr.path=@/2", "NBD server already running"),
    ("", "--nbd-server addr.type=unix,addr.path=@/none/s", "Failed to bind socket to"),
    ("", "--nbd-server addr.type=unix,addr.path=@/disk.img", "Failed to bind socket to"),
    ("", "--nbd-server addr.type=unix", "Parameter 'addr.path' is missing"),
    ("", "--nbd-server addr.type=vsock,addr.cid=x,addr.port=1", "Failed to parse cid 'x'"),
    ("", "--nbd-server addr.type=quic,addr.port=1", "does not accept value 'quic'"),
    ("", "--nbd-server addr.type=unix,addr.path=@/s,addr.host=h", "'addr.host' is unexpected"),
    ("", "--nbd-server addr.type=unix,addr.path=@/s,frob=1", "Parameter 'frob' is unexpected"),
    (
        "",
        "--nbd-server addr.type=unix,addr.path=@/s,max-connections=x",
        "'max-connections' expects",
    ),
    ("", "--nbd-server addr.type=unix,addr.path=@/s,tls-creds=c", "No TLS credentials with id 'c'"),
    (
        "--object iothread,id=c ",
        "--nbd-server addr.type=unix,addr.path=@/s,tls-creds=c",
        "is not TLS",
    ),
    ("", "--nbd-server addr.type=unix,addr.path=@/s,tls-authz=c", "'tls-authz' needs 'tls-creds'"),
    (
        "",
        "--object authz-pam,id=a,service=s",
        "does not accept value 'authz-pam'; there is authz-l",
    ),
    ("", "--object authz-list-file,id=a,filename=@/none", "Unable to read '"),
    ("", "--object authz-list,id=a,rules.0.match=x,rules.0.policy=maybe", "maybe"),
    (
        "",
        "--nbd-server addr.type=inet,addr.host=127.0.0.1,addr.port=x",
        "address resolution failed",
    ),
    ("", "--nbd-server addr.type=fd,addr.str=x", "Unable to parse FD number x"),
    (
        "",
        "--nbd-server {\"addr\":{\"type\":\"unix\",\"path\":5}}",
        "type for 'addr.path', expected: string",
    ),
    ("", "--nbd-server addr=x", "Invalid parameter type for 'addr', expected: object"),
    ("", "--object rng-random,id=s", "'qom-type' does not accept value 'rng-random'"),
    ("", "--object tls-creds-psk,id=s,dir=x", "does not accept value 'tls-creds-psk'"),
    ("", "--object tls-creds-x509,id=s,endpoint=client,dir=x", TLS[0]),
    ("", "--object tls-creds-x509,id=s,endpoint=server,dir=@/none", TLS[1]),
    ("", "--object tls-creds-x509,id=s,priority=x", "'priority': not supported"),
    ("", "--object iothread,id=s,dir=x", "Parameter 'dir' is unexpected"),
    ("", "--object iothread", "Parameter 'id' is missing"),
    ("", "--object iothread,id=1", "Parameter 'id' expects an identifier"),
    ("", "--object iothread,id=i,limits.iops-total=1", "Parameter 'limits' is unexpected"),
    ("", "--object iothread,id=i,poll-max-ns=-1", "poll-max-ns value must be in range"),
    (
        "",
        "--object iothread,id=i,thread-pool-min=4000000000,thread-pool-max=4000000000",
        "thread-pool-min value must be in range [0, 4096]",
    ),
    ("", "--object iothread,id=i,thread-pool-max=0", "bad thread-pool-min/thread-pool-max values"),
    ("", "--object throttle-group,id=t,limits.frob=1", "Parameter 'limits.frob' is unexpected"),
    ("", "--object throttle-group,id=t,poll-grow=1", "Parameter 'poll-grow' is unexpected"),
    ("", "--object throttle-group,id=t,x-iops-total=1,x-iops-read=1", "iops-total and iops-read"),
    ("", "--chardev pty,id=c", "char driver 'pty' is not supported"),
    ("", "--trace frob=1", "Parameter 'frob' is unexpected"),
];

#[test]
fn what_cannot_be_done_is_refused_by_name() {
    let place = Place::new();
    for (before, arguments, expected) in REFUSED {
        let output = place.output(&format!("{before}{arguments}"));
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{arguments}: {said}");
        // The option itself is repeated before the reason.
        let option = format!("{}: ", place.fill_in(arguments));
        let reason = said.rsplit(&option).next().unwrap();
        assert!(reason.contains(expected), "{arguments}: {said}");
        assert!(said.starts_with("coblk-storage-daemon: "), "{arguments}: {said}");
        assert!(!place.socket().exists(), "{arguments}");
    }
}

#[test]
fn help_is_given_where_it_is_asked_for() {
    let place = Place::new();
    for (arguments, expected) in [
        ("--help", "--nbd-server addr.type=inet"),
        ("-h", "--pidfile PATH"),
        ("--version", "coblk-storage-daemon version 0."),
        ("-V", "coblk-storage-daemon version 0."),
        ("--object help", "  throttle-group\n"),
        ("--object iothread,help", "  poll-max-ns=<int>\n"),
        ("--object throttle-group,help", "  limits.iops-total-max=<int>\n"),
        ("--trace help", "blk_co_preadv\n"),
        // Nothing is done then.
        ("--blockdev file,node-name=n,filename=@/none -T help", "bdrv_co_flush\n"),
    ] {
        let output = place.output(arguments);
        assert!(output.status.success(), "{arguments}: {}", stderr(&output));
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.contains(expected), "{arguments}: {said}");
    }
}

#[test]
fn what_was_sent_does_not_make_messages_long() {
    let place = Place::new();
    let long = "x".repeat(100_000);
    for arguments in [
        format!("--export nbd,id=e,node-name=d,{long}=1"),
        format!("--export {long},id=e,node-name=d"),
        format!("--object {long},id=e"),
        format!("--chardev {long},id=e"),
    ] {
        let said = stderr(&place.output(&arguments));
        // The argument itself is repeated once, as QEMU does.
        assert!(said.len() < arguments.len() + 300, "{}", said.len());
    }
}
