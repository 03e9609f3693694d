//! What a client makes the monitor hold. Alone in its process, whose memory is looked at.

mod util;

use std::io::Write;
use std::time::Duration;

use util::Served;

/// Resident memory of this process, in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    status.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
fn a_client_that_never_reads_is_not_read_from_and_costs_little() {
    let served = Served::new();
    let mut client = served.client();
    let before = resident();
    // Each asks for 64 KB; the sockets hold a few hundred.
    let request = br#"{"execute": "echo", "arguments": {"text": "x", "times": 65000}}"#;
    let requests = request.repeat(500);
    client.stream.set_nonblocking(true).unwrap();
    let mut sent = 0usize;
    let mut idle = 0;
    while idle < 20 {
        match client.stream.write(&requests[sent % requests.len()..]) {
            Ok(bytes) => (sent, idle) = (sent + bytes, 0),
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                // Room again would mean that it goes on reading.
                std::thread::sleep(Duration::from_millis(5));
                idle += 1;
            }
        }
    }
    let answers_bytes = sent / request.len() * 65_000;
    assert!(answers_bytes > 100 << 20, "only {sent} bytes were sent");
    let grown = resident().saturating_sub(before);
    assert!(grown < 32 << 20, "{grown} bytes for {sent}");
    drop(client);
    served.check();
}
