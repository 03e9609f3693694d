//! What qemu-storage-daemon takes as `--blockdev` opens here too, and what it refuses does not.

use std::path::Path;

use coblk::AioContext;
use coblk::block::Blockdevs;
use coblk::options::NodeOptions;
use coblk_tests::images::sparse_image;
use coblk_tests::{image_dir, tools};

/// `$` stands for the directory of the images.
const TAKEN: [&str; 37] = [
    "file,node-name=f,filename=$/a.img",
    "file,node-name=f,filename=$/a.img,aio=native,cache.direct=on",
    "file,node-name=f,filename=$/a.img,aio=io_uring,cache.direct=on,cache.no-flush=on",
    "file,node-name=f,filename=$/a.img,drop-cache=off,x-check-cache-dropped=on",
    "file,node-name=f,filename=$/a.img,aio-max-batch=0",
    "file,node-name=f,filename=$/a.img,aio-max-batch=32,locking=off",
    "file,node-name=f,filename=$/a.img,read-only=on,auto-read-only=on,force-share=on",
    "file,node-name=f,filename=$/a.img,discard=unmap,detect-zeroes=unmap",
    "file,node-name=f,filename=$/a.img,detect-zeroes=on",
    "file,node-name=f,filename=$/a.img,read-only=yes,cache.direct=n,cache.no-flush=true",
    "null-co,node-name=f,size=1000,latency-ns=5,read-zeroes=on",
    "null-aio,node-name=f,discard=unmap,detect-zeroes=on",
    "raw,node-name=r,offset=100,file.driver=file,file.filename=$/a.img",
    "raw,node-name=r,offset=512,size=1024,file.driver=file,file.filename=$/a.img",
    "raw,node-name=r,force-share=on,read-only=on,file.driver=file,file.filename=$/a.img",
    "blkdebug,node-name=d,image.driver=null-co",
    "blkdebug,node-name=d,image.driver=null-co,align=4096,max-transfer=65536",
    "blkdebug,node-name=d,image.driver=null-co,opt-write-zero=65536,max-write-zero=131072",
    "blkdebug,node-name=d,image.driver=null-co,opt-discard=512,max-discard=1024",
    "blkdebug,node-name=d,image.driver=null-co,take-child-perms.0=write,\
     unshare-child-perms.0=resize",
    "blkdebug,node-name=d,image.driver=null-co,inject-error.0.event=none,\
     inject-error.0.iotype=write,inject-error.0.errno=5,inject-error.0.sector=7,\
     inject-error.0.once=on,inject-error.0.immediately=on",
    "blklogwrites,node-name=l,file.driver=null-co,log.driver=file,log.filename=$/b.img",
    "blklogwrites,node-name=l,file.driver=null-co,log.driver=file,log.filename=$/b.img,\
     log-sector-size=4096",
    "blklogwrites,node-name=l,file.driver=null-co,log.driver=file,log.filename=$/b.img,\
     log-super-update-interval=5,log-append=off",
    "copy-before-write,node-name=c,file.driver=null-co,target.driver=null-co",
    "copy-before-write,node-name=c,file.driver=null-co,target.driver=null-co,\
     on-cbw-error=break-snapshot,cbw-timeout=2,min-cluster-size=131072",
    "snapshot-access,node-name=s,file.driver=copy-before-write,file.file.driver=null-co,\
     file.target.driver=null-co",
    "driver=file,node-name=f,filename=$/a.img,cache.direct=off",
    "{\"driver\":\"file\",\"node-name\":\"f\",\"filename\":\"$/a.img\",\"read-only\":true}",
    "{\"driver\":\"raw\",\"node-name\":\"r\",\"size\":512,\"file\":{\"driver\":\"null-co\"}}",
    "null-co,node-name=f,size=0x400",
    "null-co,node-name=f,size=010,latency-ns=+5",
    "null-co,node-name=f,size= 10,read-zeroes=y",
    "null-co,node-name=a,node-name=f,",
    "raw,node-name=r,file.driver=null-co,file.node-name=n,size=0x10000",
    "{'driver':'null-co','node-name':'f','size':65536}",
    "{'driver':'raw','node-name':'r','file':{'driver':'null-co','cache':{'direct':true}}} ",
];

/// Taken since QEMU 10.0. A bare Debian 12 has 7.2.
const TAKEN_LATELY: [&str; 1] = ["null-co,node-name=f,active=on"];

const REFUSED: [&str; 44] = [
    "file,node-name=f,filename=$/a.img,aio=native",
    "file,node-name=f,filename=$/a.img,aio=posix",
    "file,node-name=f,filename=$/a.img,pr-manager=nobody",
    "file,node-name=f,filename=$/a.img,force-share=on",
    "file,node-name=f,filename=$/a.img,detect-zeroes=unmap",
    "file,node-name=f,filename=$/a.img,locking=sometimes",
    "file,node-name=f,filename=$/a.img,size=5",
    "file,node-name=f,filename=$/c.img",
    "file,node-name=1f,filename=$/a.img",
    "file,node-name=f",
    "file,filename=$/a.img,node-name=f,read-only=maybe",
    "null-co,node-name=f,discard=on",
    "raw,node-name=r,size=100,file.driver=file,file.filename=$/a.img",
    "raw,node-name=r,offset=1048577,file.driver=file,file.filename=$/a.img",
    "raw,node-name=r",
    "blkdebug,node-name=d,image.driver=null-co,align=100",
    "blkdebug,node-name=d,image.driver=null-co,align=4096,max-transfer=100",
    "blkdebug,node-name=d,image.driver=null-co,opt-write-zero=65536,max-write-zero=1000",
    "blklogwrites,node-name=l,file.driver=null-co,log.driver=null-co,log-sector-size=100",
    "copy-before-write,node-name=c,file.driver=null-co,target.driver=null-co,min-cluster-size=100",
    "copy-before-write,node-name=c,file.driver=null-co,target.driver=null-co,on-cbw-error=maybe",
    "copy-before-write,node-name=c,file.driver=null-co,target.driver=null-co,cbw-timeout=-1",
    "copy-before-write,node-name=c,file.driver=null-co",
    "snapshot-access,node-name=s",
    "nosuchdriver,node-name=f",
    "null-co,node-name=f,size=1G",
    "null-co,node-name=f,size=10 ",
    "null-co,node-name=f,size=",
    "null-co,node-name=f,size=18446744073709551616",
    "null-co,node-name=f,read-zeroes=ON",
    "null-co,node-name=f,read-zeroes",
    "null-co,node-name=f,cache=on",
    "null-co,node-name=f,cache.0=on",
    "null-co,,node-name=f",
    "null-co,node-name=f,a..b=5",
    "raw,node-name=r,file.driver=null-co,offset=1k",
    "raw,node-name=r,file.0=f",
    "{'driver':'null-co','node-name':'f','size':'5'}",
    "{'driver':'null-co','node-name':'f','size':1.0}",
    "{'driver':'null-co','node-name':'f','read-zeroes':'on'}",
    "{'driver':'null-co','node-name':'f','node-name':'g'}",
    "{'driver':'null-co','node-name':'f'}}",
    "{'driver':'null-co','node-name':'f'",
    "{'driver':'raw','node-name':'r','file':null}",
];

/// Whether the daemon opens a node. It goes on to an export that it cannot make, and so ends.
fn qemu_takes(line: &str) -> Result<(), String> {
    let mut command = tools::command("timeout");
    command.args(["10", "qemu-storage-daemon", "--blockdev", line]);
    command.args(["--export", "nbd,id=e,node-name=nobody"]);
    let output = tools::finish("qemu-storage-daemon", &mut command);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{line}: {said}");
    if said.contains("--export") { Ok(()) } else { Err(said) }
}

fn we_take(line: &str) -> Result<(), String> {
    let options = match line.starts_with('{') {
        true => NodeOptions::from_json(line),
        false => NodeOptions::from_keyval(line),
    };
    let options = options.map_err(|error| error.to_string())?;
    let (ctx, blockdevs) =
        (AioContext::for_test().expect("a context"), Blockdevs::new(coblk::drivers()));
    blockdevs.open(&ctx, options).map(drop).map_err(|error| error.to_string())
}

fn check(lines: &[&str], dir: &Path, taken: bool) {
    for line in lines {
        let line = line.replace('$', tools::text(dir));
        let (qemu, ours) = (qemu_takes(&line), we_take(&line));
        assert_eq!((qemu.is_ok(), ours.is_ok()), (taken, taken), "{line}: {qemu:?}, {ours:?}");
    }
}

#[test]
fn both_take_the_same_options() {
    let dir = image_dir!();
    for name in ["a.img", "b.img"] {
        sparse_image(dir.path(), name, 1 << 20);
    }
    check(&TAKEN, dir.path(), true);
    if tools::qemu_major() >= 10 {
        check(&TAKEN_LATELY, dir.path(), true);
    }
    check(&REFUSED, dir.path(), false);
}
