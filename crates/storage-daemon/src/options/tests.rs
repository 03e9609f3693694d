//! Options that are printed make the same options again.

use coblk::qapi::to_argument;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::*;

fn check<T: DeserializeOwned + Serialize>(text: &str, implied: &str) {
    let options: T = from_argument(text, implied).unwrap_or_else(|error| panic!("{text}: {error}"));
    assert_eq!(to_argument(&options, implied), text);
}

#[test]
fn what_is_printed_of_addresses_and_chardevs_is_read_again() {
    for text in [
        "addr.host=,addr.port=80,addr.type=inet",
        "addr.host=a,addr.ipv4=on,addr.ipv6=off,addr.keep-alive=on,addr.keep-alive-count=1,\
         addr.keep-alive-idle=2,addr.keep-alive-interval=3,addr.numeric=on,addr.port=http,\
         addr.to=90,addr.type=inet",
        "addr.path=/run/a,,b,addr.type=unix",
        "addr.abstract=on,addr.path=a,addr.tight=off,addr.type=unix",
        "addr.cid=4294967295,addr.port=10809,addr.type=vsock",
        "addr.str=5,addr.type=fd",
    ] {
        check::<NbdServerOptions>(text, "addr");
        check::<MetricsOptions>(text, "addr");
    }
    for text in [
        "socket,id=c0,path=/run/q,reconnect-ms=1500,server=off",
        "socket,fd=5,id=c0,server=on,wait=off",
        "socket,host=::1,id=c0,port=4444,server=on,to=4450,wait=on",
        "stdio,id=c0,signal=off",
    ] {
        check::<ChardevOptions>(text, "backend");
    }
}

#[test]
fn members_of_other_addresses_are_unexpected() {
    for (text, named) in [
        ("addr.type=unix,addr.path=a,addr.host=b", "Parameter 'addr.host' is unexpected"),
        ("addr.type=inet,addr.host=a", "Parameter 'addr.port' is missing"),
        ("addr.type=vsock,addr.cid=2,addr.port=1,addr.to=2", "Parameter 'addr.to' is unexpected"),
        ("addr.type=fd,addr.str=5,addr.path=a", "Parameter 'addr.path' is unexpected"),
        ("addr.type=tcp", "Parameter 'addr.type' does not accept value 'tcp'"),
        ("addr.path=a", "Parameter 'addr.type' is missing"),
        ("max-connections=1", "Parameter 'addr' is missing"),
    ] {
        let error = from_argument::<NbdServerOptions>(text, "addr").unwrap_err().to_string();
        assert!(error.starts_with(named), "{text}: {error}");
    }
}
