//! Drivers that are not of this crate: what they are given, what they are held to, and what is left of
//! them.

use std::sync::Arc;

use coblk_aio::IoVectorMut;
use coblk_block::drivers::{Raw, RawOptions};
use coblk_block::options::{DriverConfig, NodeOptions};
use coblk_block::{BlockBackend, Blockdevs, Drivers};

use crate::util;
use crate::util::bench::Bench;
use crate::util::scripted::{Counter, Scripted, bench, counter};

#[test]
fn a_driver_of_another_crate_has_its_place_among_the_others() {
    let bench = bench();
    bench.open("null-co,node-name=disk,size=1048576").unwrap();
    let line =
        "raw,node-name=top,offset=512,file.driver=scripted,file.node-name=own,file.file=disk";
    let node = bench.open(line).unwrap();
    let backend = BlockBackend::new(&bench.ctx, "drive", node);
    let mut byte = [0];
    backend.preadv(&bench.ctx, 0, &mut IoVectorMut::from(&mut byte[..])).unwrap();
    assert_eq!(byte, [5]);
    let listed = bench.blockdevs.options();
    let scripted = listed.iter().find(|it| it.node_name.as_deref() == Some("top")).unwrap();
    let written = coblk_qapi::to_argument(scripted, "driver").into_string().unwrap();
    assert!(written.contains("file.driver=scripted,file.fails=off,file.file=disk"), "{written}");
    drop(backend);
    bench.blockdevs.close(&bench.ctx, "top").unwrap();
    assert_eq!(bench.names(), ["disk"]);
}

#[test]
fn a_driver_is_told_what_is_wanted_of_its_node() {
    let bench = bench();
    let counter = counter(&bench);
    bench
        .open(
            "raw,node-name=top,read-only=on,file.driver=other-name,file.counter=c,file.node-name=a,\
             file.cache.direct=on,file.file.driver=scripted,file.file.counter=c,\
             file.file.node-name=b,file.file.read-only=off",
        )
        .unwrap();
    while bench.ctx.try_poll() {}
    // Background work runs when it may, in the context that opened the node.
    let mut told = counter.told.lock().unwrap().clone();
    told.sort();
    let expected = ["a: other-name at 1, true, true", "at home", "at home"];
    assert_eq!(told, [&expected[..], &["b: scripted at 2, false, true"]].concat());
}

#[test]
fn drivers_are_refused_by_name_with_those_there_are() {
    let mut drivers = Drivers::new();
    drivers.add::<Raw>();
    drivers.add::<Scripted>();
    let blockdevs = Blockdevs::new(drivers);
    let bench = Bench { blockdevs: Arc::new(blockdevs), ..Bench::new() };
    let expected =
        "Parameter 'driver' does not accept value 'file'; there is other-name, raw, scripted";
    bench.refused("file,filename=$", expected);
    let expected =
        "Parameter 'file.file.driver' does not accept value 'null-co'; there is other-name, raw";
    bench.refused("raw,file.driver=scripted,file.file.driver=null-co", expected);
    // Typed options are not taken for those of another driver.
    let wrong = NodeOptions::new(DriverConfig::new("scripted", RawOptions::new("disk")));
    let error = bench.blockdevs.open(&bench.ctx, wrong).err().unwrap().to_string();
    assert_eq!(error, "Parameter 'driver': the options are those of another driver");
}

#[test]
#[should_panic(expected = "two drivers are called 'raw'")]
fn a_driver_cannot_be_replaced() {
    let mut drivers = coblk_block::drivers();
    drivers.add::<Raw>();
}

#[test]
fn mistakes_anywhere_come_before_the_first_node_is_opened() {
    let bench = bench();
    let counter = counter(&bench);
    for (line, expected) in [
        ("raw,file.driver=scripted,file.counter=c,file.file.driver=rom", "value 'rom'"),
        ("scripted,counter=c,file.driver=raw,file.size=1", "Parameter 'file.file' is missing"),
        (
            "blklogwrites,file.driver=scripted,file.counter=c,log.driver=null-co,log.x=1",
            "Parameter 'log.x' is unexpected",
        ),
    ] {
        bench.refused(line, expected);
    }
    counter.expect(0, 0);
    bench.refused("scripted,counter=nothing", "there is no counter 'nothing'");
    let error = bench.blockdevs.add_object("c", Arc::<Counter>::default()).unwrap_err();
    assert_eq!(error.to_string(), "there is a counter 'c' already");
    bench.open("scripted,counter=c").unwrap();
    counter.expect(1, 0);
    bench.blockdevs.remove_object::<Counter>("c").unwrap();
    assert!(bench.blockdevs.object::<Counter>("c").is_none());
}

#[test]
fn what_was_opened_for_a_node_that_is_not_is_closed() {
    let bench = bench();
    bench.open("null-co,node-name=disk,size=1048576").unwrap();
    let image = "file.driver=file,file.node-name=image,file.filename=$";
    bench
        .refused(&format!("scripted,node-name=s,fails=on,{image}"), "node 's': option 'fails': it");
    bench.refused("scripted,file.driver=scripted,file.fails=on,header=file,,filename=$", "it does");
    bench.refused(&format!("scripted,{image},header=nothing"), "does not accept value 'nothing'");
    bench.refused("scripted,fails=on,file=disk", "it does");
    let counter = counter(&bench);
    let child = "file.driver=scripted,file.counter=c";
    bench.refused(&format!("scripted,fails=on,{child}"), "it does");
    counter.expect(1, 1);
    bench.refused(&format!("scripted,lie=name,{child}"), "calls itself 'raw'");
    bench.refused(&format!("scripted,lie=child,{child}"), "a child 'other' that it was not given");
    counter.expect(3, 3);
    bench.open(&format!("scripted,node-name=r,child=forgotten,{child}")).unwrap();
    counter.expect(4, 4);
    // A child that a driver opened, and does not have, is closed as well; one that was there is free.
    bench.open(&format!("scripted,node-name=s,child=forgotten,{image}")).unwrap();
    assert_eq!(bench.names(), ["disk", "r", "s"]);
    assert_eq!(util::bench::open_descriptors(&bench.image()), 0);
    bench.open("scripted,node-name=t,child=forgotten,file=disk").unwrap();
    bench.blockdevs.close(&bench.ctx, "disk").unwrap();
}

#[test]
fn drivers_that_are_not_what_they_say_are_refused() {
    let bench = bench();
    let counter = counter(&bench);
    let image = "file.driver=file,file.node-name=image,file.filename=$";
    for (lie, expected) in [
        ("name", "node 's': its driver calls itself 'raw'"),
        ("limits", "node 's': its driver has impossible limits"),
        ("child", "node 's': its driver has a child 'other' that it was not given"),
        ("twice", "node 's': its driver asks twice for its child 'file'"),
        ("unlisted", "node 's': its driver keeps its child 'file', and does not list it"),
        ("list", "node 's': its driver has a list of children that it was not given"),
        ("unlisted-list", "node 's': its driver keeps its child 'list', and does not list it"),
        ("length", "node 's' would have 18446744073709551615 bytes"),
    ] {
        bench.refused(&format!("scripted,node-name=s,counter=c,lie={lie},{image}"), expected);
    }
    // Those that were open are closed; one of them has not come as far.
    counter.expect(8, 7);
}

#[test]
fn a_child_that_no_option_names_is_opened_listed_and_closed() {
    let bench = bench();
    let node = bench.open("scripted,node-name=s,header=file,,node-name=data,,filename=$").unwrap();
    assert_eq!(bench.names(), ["data", "s"]);
    let children = node.children().into_iter();
    let names: Vec<_> =
        children.map(|(name, node)| (name.to_string(), node.name().to_owned())).collect();
    assert_eq!(names, [("header".to_owned(), "data".to_owned())]);
    // Its parent opens it again, so it is not in a list of its own, however it is used.
    bench.open("raw,node-name=a,file=data,read-only=on").unwrap();
    let listed: Vec<_> =
        bench.blockdevs.options().into_iter().map(|it| it.node_name.unwrap()).collect();
    assert_eq!(listed, ["s", "a"]);
    bench.blockdevs.close(&bench.ctx, "a").unwrap();
    // It stays where it is, with what its parent is told now.
    let reopen = NodeOptions::from_keyval(
        "scripted,node-name=s,read-only=on,header=file,,node-name=data,,filename=$"
            .replace('$', &bench.image()),
    );
    bench.blockdevs.reopen(&bench.ctx, vec![reopen.unwrap()]).unwrap();
    assert!(bench.blockdevs.node("data").unwrap().is_read_only());
    drop(node);
    bench.blockdevs.close(&bench.ctx, "s").unwrap();
    assert!(bench.names().is_empty());
    assert_eq!(util::bench::open_descriptors(&bench.image()), 0);
}

#[test]
fn a_slot_is_opened_with_a_child_or_without() {
    let bench = bench();
    let empty = bench.open("scripted,node-name=e,slot=on").unwrap();
    assert!(empty.children().is_empty());
    let line = "scripted,node-name=s,slot=on,backing.driver=file,backing.filename=$";
    let backing = bench.open(line).unwrap().children().remove(0).1;
    assert!(backing.is_read_only(), "as the role wants it");
    bench.blockdevs.close(&bench.ctx, "s").unwrap();
    assert_eq!(bench.names(), ["e"]);
    bench.open("null-co,node-name=disk,size=1048576").unwrap();
    let refused = |open: &str, reopen: &str, words: &str| {
        bench.open(open).unwrap();
        let reopen = NodeOptions::from_keyval(reopen).unwrap();
        let error = bench.blockdevs.reopen(&bench.ctx, vec![reopen]).unwrap_err().to_string();
        assert_eq!(error, words);
    };
    // A slot that the driver has not asked for cannot be filled, and an edge that is none not emptied.
    let words = "node 'n': cannot change the option 'backing'";
    refused("scripted,node-name=n", "scripted,node-name=n,backing=disk", words);
    let words = "child 'backing' of node 'm' cannot be detached";
    refused("scripted,node-name=m,backing=disk", "scripted,node-name=m,backing=", words);
}

#[test]
fn images_that_name_each_other_for_ever_are_too_high() {
    let bench = bench();
    let counter = counter(&bench);
    bench.refused("scripted,counter=c,header=", "would have more than 256 levels of children");
    counter.expect(257, 0);
}

#[test]
fn a_reopen_changes_what_the_driver_says_and_names_what_it_does_not() {
    let bench = bench();
    for name in ["disk", "other"] {
        bench.open(&format!("null-co,node-name={name},size=1048576")).unwrap();
    }
    let node = bench.open("scripted,node-name=s,file=disk").unwrap();
    let reopen = |line: &str| {
        let options = NodeOptions::from_keyval(line).unwrap();
        bench.blockdevs.reopen(&bench.ctx, vec![options]).map_err(|error| error.to_string())
    };
    let fixed = |option: &str| Err(format!("node 's': cannot change the option '{option}'"));
    assert_eq!(reopen("scripted,node-name=s,file=disk,fails=on"), fixed("fails"));
    assert_eq!(reopen("scripted,node-name=s,file=disk,counter=c"), fixed("counter"));
    assert_eq!(reopen("scripted,node-name=s"), fixed("file"));
    assert_eq!(reopen("raw,node-name=s,file=disk"), fixed("driver"));
    assert_eq!(reopen("scripted,node-name=s,file=disk,child=forgotten"), Ok(()));
    assert_eq!(reopen("scripted,node-name=s,file=other,child=forgotten"), Ok(()));
    assert_eq!(node.children()[0].1.name(), "other");
    // Limits are asked for again; impossible ones are refused, and all is as it was.
    assert_eq!(reopen("scripted,node-name=s,file=other,alignment=512"), Ok(()));
    assert_eq!(node.limits().request_alignment, 512);
    let error = reopen("scripted,node-name=s,file=disk,alignment=3").unwrap_err();
    assert!(error.starts_with("node 's': its driver has impossible limits"), "{error}");
    assert_eq!(node.limits().request_alignment, 512);
    assert_eq!((node.driver().limits(), node.children()[0].1.name()), (node.limits(), "other"));
    // A child that the driver does not have cannot be replaced; one of a node that was opened without one cannot come.
    for line in ["scripted,node-name=u", "scripted,node-name=v,child=forgotten,file=disk"] {
        bench.open(line).unwrap();
        let error = reopen(&format!("{},file=other", line.trim_end_matches(",file=disk")));
        assert!(error.unwrap_err().ends_with("cannot change the option 'file'"), "{line}");
    }
}

#[test]
fn a_reopen_asks_the_driver_before_an_edge_turns_and_for_its_limits_after() {
    let bench = bench();
    for line in [
        "null-co,node-name=disk,size=1048576",
        "null-co,node-name=unwanted,size=1048576",
        "blkdebug,node-name=coarse,align=4096,image=disk",
    ] {
        bench.open(line).unwrap();
    }
    let node = bench.open("scripted,node-name=s,file=disk").unwrap();
    let reopen = |line: &str| {
        let options = NodeOptions::from_keyval(line).unwrap();
        bench.blockdevs.reopen(&bench.ctx, vec![options]).map_err(|error| error.to_string())
    };
    let state = || {
        let limits = node.limits();
        let child = node.children()[0].1.name().to_owned();
        (child, limits.request_alignment, limits.pdiscard_alignment)
    };
    let before = state();
    let refused = reopen("scripted,node-name=s,file=unwanted,alignment=512").unwrap_err();
    assert!(refused.ends_with("it does not want that"), "{refused}");
    assert_eq!(state(), before);
    assert_eq!(reopen("scripted,node-name=s,file=coarse,alignment=512"), Ok(()));
    assert_eq!(state(), ("coarse".to_owned(), 512, 4096));
    // So it is where a node is replaced for all that use it.
    let [coarse, disk] = ["coarse", "disk"].map(|name| bench.blockdevs.node(name).unwrap());
    coarse.replace(&bench.ctx, &disk).unwrap();
    assert_eq!(state(), ("disk".to_owned(), 512, 1));
}

#[test]
fn an_active_node_is_not_opened_on_an_inactive_one() {
    let bench = bench();
    bench.open("null-co,node-name=disk,size=1048576,active=off").unwrap();
    // Refused before the driver does more than to ask for its child.
    let line = "scripted,node-name=s,fails=on,file=disk";
    bench.refused(line, "node 's' needs node 'disk' to be active, and it is inactive");
    bench.refused(&format!("{line},active=off"), "it does");
    bench.open("scripted,node-name=s,active=off,file=disk").unwrap();
}
