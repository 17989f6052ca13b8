//! A hub in a process of its own, and requests to it over plain sockets: no client library that tries again
//! stands between what a hub acknowledged before it was killed and what its senders heard.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use serde_json::Value;

use crate::support::repository;

/// How long a reply may take; debug builds on a busy machine are slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the command line to its end.
pub fn gridhub(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

/// The command line, without the settings of whoever runs the tests.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gridhub"));
    command.args(arguments);
    plain(command)
}

/// Any program, in the repository's folder and without the settings of whoever runs the tests.
pub fn plain(mut command: Command) -> Command {
    command.current_dir(repository());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("GRIDHUB_") {
            command.env_remove(name);
        }
    }
    command
}

/// The arguments that serve the hub of `folder` on a port of the system's choice.
pub fn serving(folder: &Path) -> Vec<String> {
    let (data, keys) = (folder.join("data"), folder.join("keys"));
    let (data, keys) = (data.to_str().unwrap().to_owned(), keys.to_str().unwrap().to_owned());
    let doors = ["--http", "127.0.0.1:0", "--postgres", "none", "--flight", "none"];
    ["serve", "--data", &data, "--keys", &keys].into_iter().chain(doors).map(str::to_owned).collect()
}

/// The command that serves the hub of `folder`.
pub fn serve(folder: &Path) -> Command {
    let arguments = serving(folder);
    command(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Makes a token on the folder of a hub, whether it runs or not.
pub fn token(folder: &Path, caller: &str) -> String {
    let data = folder.join("data");
    let made = gridhub(&["token", "create", caller, "--data", data.to_str().unwrap()]);
    assert_eq!(made.status.code(), Some(0), "{}", text(&made.stderr));
    text(&made.stdout).trim().to_owned()
}

/// What `gridhub audit verify` says of the log of a folder, which must be whole.
pub fn assert_whole_log(folder: &Path) {
    let data = folder.join("data");
    let verified = gridhub(&["audit", "verify", "--data", data.to_str().unwrap()]);
    assert!(text(&verified.stdout).contains("the log is whole"), "{}", text(&verified.stderr));
}

/// A hub that listens. It is killed when it is let go of.
pub struct Process {
    child: Child,
    /// Host and port.
    pub address: String,
}

/// A hub that ended before it listened.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: Option<i32>,
    /// What it said.
    pub said: String,
}

impl Process {
    /// Starts the hub of `folder`.
    pub fn start(folder: &Path) -> Self {
        Self::spawn(serve(folder)).unwrap()
    }

    /// Starts a hub by a command and waits until it listens.
    pub fn spawn(mut command: Command) -> Result<Self, Ended> {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut said = String::new();
        for line in lines.by_ref().map_while(io::Result::ok) {
            let address = line.split("listens on http://").nth(1).and_then(|rest| rest.split(',').next());
            if let Some(address) = address {
                let address = address.to_owned();
                std::thread::spawn(move || lines.for_each(drop));
                return Ok(Self { child, address });
            }
            said.push_str(&line);
            said.push('\n');
        }
        Err(Ended { status: child.wait().unwrap().code(), said })
    }

    /// Ends it at once, as a crash would.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to end, and waits until it has.
    pub fn stop(mut self) {
        let asked = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(asked.success());
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
    }

    /// Whether it still runs.
    pub fn is_up(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// The most memory it ever had, in kilobytes.
    pub fn peak(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Asks in SQL; the rows, which must be given.
    pub fn ask(&self, token: &str, sql: &str) -> io::Result<Heard> {
        let question = serde_json::json!({ "sql": sql }).to_string();
        let headers = [("content-type", "application/json"), ("accept", "application/json")];
        send(&self.address, token, "POST", "/v1/sql", &headers, question.as_bytes())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A whole reply.
#[derive(Debug)]
pub struct Heard {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Heard {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {}", text(&self.body)))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The kind of a problem; empty where it is none.
    pub fn slug(&self) -> String {
        let body: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        let kind = body["type"].as_str().unwrap_or_default();
        kind.rsplit('/').next().unwrap_or_default().to_owned()
    }

    /// The rows of an answer.
    pub fn rows(&self) -> Vec<Vec<Value>> {
        assert_eq!(self.status, 200, "{}", text(&self.body));
        serde_json::from_value(self.json()["rows"].clone()).unwrap()
    }
}

/// Sends one request on a connection of its own. An error where no whole reply came back: then nothing was
/// acknowledged.
pub fn send(
    address: &str,
    token: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<Heard> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let length = body.len();
    let mut head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\
         content-length: {length}\r\n"
    );
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    // A hub that says no before it has read everything is heard too.
    let _ = stream.write_all(body);
    let mut raw = Vec::new();
    match stream.read_to_end(&mut raw) {
        Err(error) if raw.is_empty() => Err(error),
        _ => parse(&raw).ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "the reply broke off")),
    }
}

/// A reply, where it is whole.
fn parse(raw: &[u8]) -> Option<Heard> {
    let end = raw.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = text(&raw[..end]);
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let body = raw[end + 4..].to_vec();
    let heard = Heard { status, headers, body };
    let length = heard.header("content-length").and_then(|length| length.parse::<usize>().ok());
    match length {
        Some(length) if heard.body.len() == length => Some(heard),
        None if status == 204 => Some(heard),
        _ => None,
    }
}

/// A copy of a folder and all below it, as it stands.
pub fn copy(from: &Path, into: &Path) {
    std::fs::create_dir_all(into).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let place = into.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy(&path, &place),
            false => drop(std::fs::copy(&path, &place).unwrap()),
        }
    }
}
