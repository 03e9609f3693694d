//! A client of a monitor, of the daemon's or of QEMU's.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use serde_json::{Value, json};

use super::connect;

pub struct Client {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
    /// Told meanwhile.
    events: VecDeque<Value>,
    /// The answer, if it came with them.
    early: Option<Value>,
}

impl Client {
    /// One that has negotiated.
    pub fn new(socket: &Path) -> Client {
        let mut client = Client::connect(socket);
        assert_eq!(client.ask("qmp_capabilities", json!({})), json!({"return": {}}));
        client
    }

    /// One that has negotiated with a daemon that may be QEMU's: that greets a client twice which comes while
    /// it starts.
    pub fn of_peer(socket: &Path) -> Client {
        let mut client = Client::connect(socket);
        let mut answer = client.ask("qmp_capabilities", json!({}));
        if answer.get("QMP").is_some() {
            answer = client.answer();
        }
        assert_eq!(answer, json!({"return": {}}));
        client
    }

    fn connect(socket: &Path) -> Client {
        let stream = connect(socket);
        let lines = BufReader::new(stream.try_clone().unwrap());
        let mut client = Client { stream, lines, events: VecDeque::new(), early: None };
        assert!(client.receive().get("QMP").is_some());
        client
    }

    #[track_caller]
    fn receive(&mut self) -> Value {
        let mut line = String::new();
        let bytes = self.lines.read_line(&mut line).unwrap();
        assert!(bytes > 0, "the end instead of a message");
        serde_json::from_str(&line).unwrap()
    }

    /// Sends a command, and does not wait for its answer.
    pub fn send(&mut self, command: &str, arguments: Value) {
        let request = json!({"execute": command, "arguments": arguments});
        self.stream.write_all(request.to_string().as_bytes()).unwrap();
    }

    /// Whether the answer to a command that was sent is there.
    pub fn is_answered(&mut self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        while self.early.is_none() {
            let peeked = recv(&self.stream, &mut [0u8; 1][..], flags).map(|_| ());
            if self.lines.buffer().is_empty() && peeked == Err(Errno::AGAIN) {
                return false;
            }
            let message = self.receive();
            match message.get("event") {
                Some(_) => self.events.push_back(message),
                None => self.early = Some(message),
            }
        }
        true
    }

    /// The answer to a command that was sent.
    #[track_caller]
    pub fn answer(&mut self) -> Value {
        if let Some(answer) = self.early.take() {
            return answer;
        }
        loop {
            let message = self.receive();
            if message.get("event").is_none() {
                return message;
            }
            self.events.push_back(message);
        }
    }

    /// The answer to a command.
    #[track_caller]
    pub fn ask(&mut self, command: &str, arguments: Value) -> Value {
        self.send(command, arguments);
        self.answer()
    }

    /// What a command returns that must succeed.
    #[track_caller]
    pub fn run(&mut self, command: &str, arguments: Value) -> Value {
        let answer = self.ask(command, arguments.clone());
        let result = answer.get("return");
        result.unwrap_or_else(|| panic!("{command} {arguments}: {answer}")).clone()
    }

    /// The text of the error of a command that must fail.
    #[track_caller]
    pub fn refused(&mut self, command: &str, arguments: Value) -> String {
        let answer = self.ask(command, arguments.clone());
        let desc = answer["error"]["desc"].as_str();
        desc.unwrap_or_else(|| panic!("{command} {arguments}: {answer}")).to_owned()
    }

    /// The next event, and what it tells.
    #[track_caller]
    pub fn any_event(&mut self) -> (String, Value) {
        let message = self.events.pop_front();
        let message = message.unwrap_or_else(|| self.receive());
        let name = message["event"].as_str();
        assert!(name.is_some() && message["timestamp"]["seconds"].is_u64(), "{message}");
        (name.unwrap().to_owned(), message.get("data").cloned().unwrap_or_default())
    }

    /// The next event of this name, and what it tells; others before it are forgotten.
    #[track_caller]
    pub fn event(&mut self, name: &str) -> Value {
        loop {
            let (found, data) = self.any_event();
            if found == name {
                return data;
            }
        }
    }

    /// Whether the other side has closed; there must be nothing but events before that.
    pub fn ends(mut self) {
        let mut line = String::new();
        while self.lines.read_line(&mut line).unwrap() > 0 {
            assert!(line.contains("\"event\""), "{line}");
            line.clear();
        }
    }
}
