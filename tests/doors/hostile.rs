//! What no client would send to the Postgres door. Whatever it is, the door answers with an error or ends that one
//! connection, goes on serving others, and does not panic.
//!
//! `GRIDHUB_WIRE_CASES` asks for more mutations than CI has time for, `GRIDHUB_WIRE_SEED` for others.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, Once,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures::future::join_all;
use gridhub::front::postgres::Options;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{runtime::Runtime, sync::Semaphore, time::timeout};

use super::{
    support::{ENDLESS, Site},
    wire::{
        Message, Wire, bind, cancel, close, describe, execute, first, framed, gss, parse, password, query, startup,
        sync, terminate, text, tls,
    },
};
use crate::support::{CSV, TestClock, TestHub, fixture};

/// What threads of the doors under attack are called, so that their panics are told from those of other tests.
const THREADS: &str = "hostile-door";

/// How long who does not get on may take.
const STARTUP: Duration = Duration::from_secs(2);

/// How many mutations are tried, and from which seed on.
const CASES: u64 = 400;
const SEED: u64 = 20_260_107;

/// Mutations tried at once.
const AT_ONCE: usize = 8;

const COUNT: &str = "SELECT count(*) FROM divisions WHERE level = $1";
const INT4: u32 = 23;

/// The names of threads that panicked.
static FALLEN: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Runs a conversation on threads of its own and fails if one of them panics.
fn attack<F: Future<Output = ()>>(conversation: impl FnOnce() -> F) {
    static HOOK: Once = Once::new();
    static ATTACKS: AtomicUsize = AtomicUsize::new(0);
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if let Some(name) = std::thread::current().name().filter(|name| name.starts_with(THREADS)) {
                FALLEN.lock().unwrap().push(name.to_owned());
            }
            usual(panic);
        }));
    });
    let name = format!("{THREADS}-{}", ATTACKS.fetch_add(1, Ordering::SeqCst));
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime: Runtime = runtime.worker_threads(2).thread_name(&name).enable_all().build().unwrap();
    runtime.block_on(conversation());
    drop(runtime);
    let fell = FALLEN.lock().unwrap().contains(&name);
    assert!(!fell, "the door panicked");
}

/// The counting of panics must be able to fail.
#[test]
#[should_panic(expected = "the door panicked")]
fn a_panic_is_counted() {
    attack(|| async {
        let fallen = tokio::spawn(async { assert!(std::hint::black_box(false), "on purpose") }).await;
        assert!(fallen.is_err());
    });
}

/// A hub with the divisions, whose callers may ask as fast as they like.
async fn site() -> Site {
    let hub = TestHub::with(TestClock::at("2026-01-07T01:00:00Z"), |opening| {
        opening.throttle.per_second = 0;
        opening.throttle.at_once = 0;
    })
    .await;
    let divisions = fixture("platform.divisions.csv");
    assert_eq!(hub.push("platform-uploader", "platform.divisions", CSV, divisions).await.status, 201);
    Site::open_with(hub, Options { startup: STARTUP, ..Options::default() }).await
}

const PURPOSE: [(&str, &str); 1] = [("options", "-c purpose=epidemiology")];

async fn let_in(site: &Site) -> Wire {
    let token = site.hub.token("health-analyst");
    Wire::let_in(site.postgres, "health-analyst", &token, &PURPOSE).await.0
}

/// Others are served as if nothing had happened.
async fn still_serves(site: &Site) {
    let line = site.line("health-analyst", "epidemiology").await;
    assert_eq!(line.lines("SELECT count(*) FROM divisions").await, ["9"]);
}

/// Sends bytes as the first ones of a connection, which must come to an end.
async fn begins_with(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut wire = Wire::open(address).await;
    wire.send(bytes).await;
    let begun = Instant::now();
    let said = wire.rest().await;
    assert!(begun.elapsed() < STARTUP + Duration::from_secs(8), "{:?}", begun.elapsed());
    said
}

/// Whether somebody was let in.
fn is_let_in(said: &[u8]) -> bool {
    said.windows(6).any(|part| part == b"Z\0\0\0\x05I")
}

fn only_errors(said: &[u8]) {
    // Requests for encryption are answered with one letter.
    let asked = said.iter().take_while(|byte| **byte == b'N').count();
    let rest = &said[asked..];
    let kind = rest.first().copied();
    assert!(kind.is_none_or(|kind| matches!(kind, b'E' | b'R' | b'v')), "{}", String::from_utf8_lossy(said));
    assert!(!is_let_in(said), "{}", String::from_utf8_lossy(said));
}

#[test]
fn what_is_no_start_of_a_connection_ends_it() {
    attack(|| async {
        let site = site().await;
        let long = "x".repeat(5_000);
        let many: Vec<_> = (0..600).flat_map(|at| [text(&format!("k{at}")), text("v")].concat()).collect();
        let unended = [text("user"), text("health-analyst"), b"purpose\0epidemiology".to_vec()].concat();
        let starts: Vec<Vec<u8>> = vec![
            b"GET / HTTP/1.1\r\nhost: hub\r\n\r\n".to_vec(),
            b"SSH-2.0-OpenSSH_9.6\r\n".to_vec(),
            vec![0; 64],
            vec![0xff; 64],
            vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3],
            terminate(),
            query("SELECT 1"),
            // Lengths that cannot be, or that promise what would fill the memory.
            vec![0, 0, 0, 0, 0, 3, 0, 0],
            vec![0, 0, 0, 7, 0, 3, 0, 0],
            vec![0x7f, 0xff, 0xff, 0xff, 0, 3, 0, 0],
            vec![0xff, 0xff, 0xff, 0xff, 0, 3, 0, 0],
            first(196_608, &[0; 12_000]),
            // Versions that nobody speaks.
            first(131_072, b"user\0x\0\0"),
            first(0, b"user\0x\0\0"),
            first(u32::MAX, b"user\0x\0\0"),
            first(262_144, b"user\0x\0\0"),
            // Nobody, or names without end.
            first(196_608, &[]),
            first(196_608, &[0]),
            first(196_608, b"user\0\0"),
            first(196_608, b"user"),
            first(196_608, b"user\0health-analyst"),
            first(196_608, &[0xff; 40]),
            first(196_608, &unended),
            first(196_608, &[many, vec![0]].concat()),
            startup("health-analyst", &[("options", long.as_str())]),
            startup(&long, &[]),
            startup("health-analyst", &[("user", "hub-admin"), ("user", "")]),
            startup("health-analyst", &[("replication", "database")]),
            startup("health-analyst", &[("_pq_.nonsense", "1")]),
            // Half a word, and then silence.
            startup("health-analyst", &[])[..6].to_vec(),
            startup("health-analyst", &[])[..20].to_vec(),
            Vec::new(),
            // Encryption, again and again.
            tls(),
            [tls(), tls()].concat(),
            [tls(), gss(), tls(), gss(), tls()].concat(),
            [tls(), b"garbage, and more of it".to_vec()].concat(),
            // Cancelling what is not there.
            cancel(&[0; 8]),
            cancel(&[0xff; 8]),
            cancel(&[]),
            cancel(&[7; 36]),
            cancel(&[7; 300]),
        ];
        // At once, since some are only ended when their time is over.
        let answers = join_all(starts.iter().map(|bytes| begins_with(site.postgres, bytes))).await;
        for (at, said) in answers.iter().enumerate() {
            only_errors(said);
            assert!(said.len() < 1_000, "start {at} was answered with {} bytes", said.len());
        }
        still_serves(&site).await;
    });
}

#[test]
fn who_asks_for_encryption_that_there_is_not_may_go_on_without() {
    attack(|| async {
        let site = site().await;
        let mut wire = Wire::open(site.postgres).await;
        for request in [gss(), tls()] {
            wire.send(&request).await;
            assert_eq!(wire.byte().await, Some(b'N'));
        }
        wire.send(&startup("health-analyst", &PURPOSE)).await;
        wire.send(&password(&site.hub.token("health-analyst"))).await;
        assert_eq!(wire.until_ready().await.last().map(|message| message.kind), Some(b'Z'));
        assert!(wire.ask("SELECT name FROM divisions").await.iter().any(|message| message.kind == b'D'));
    });
}

#[test]
fn what_is_no_credential_ends_it_too() {
    attack(|| async {
        let site = site().await;
        let token = site.hub.token("health-analyst");
        for second in [
            query("SELECT 1"),
            sync(),
            framed(b'p', &[]),
            framed(b'p', b"no end"),
            framed(b'p', &[0; 9_000]),
            framed(b'p', &[0xff; 64]),
            framed(b'p', &text(&"x".repeat(20_000))),
            vec![b'p', 0, 0, 0, 0],
            vec![b'p', 0x7f, 0xff, 0xff, 0xff],
            vec![b'p', 0xff, 0xff, 0xff, 0xff],
            [framed(b'p', &text("wrong")), password(&token), query("SELECT 1")].concat(),
            // Half of it, and then silence.
            password(&token)[..9].to_vec(),
            Vec::new(),
        ] {
            let begun = [startup("health-analyst", &PURPOSE), second].concat();
            let said = begins_with(site.postgres, &begun).await;
            only_errors(&said);
        }
        still_serves(&site).await;
    });
}

/// Sends messages and a `Sync`, and expects an error with this SQLSTATE and a connection that goes on.
async fn is_told(wire: &mut Wire, messages: &[Vec<u8>], code: &str) {
    for message in messages {
        wire.send(message).await;
    }
    wire.send(&sync()).await;
    let answers = wire.until_ready().await;
    let errors: Vec<_> = answers.iter().filter(|message| message.kind == b'E').map(Message::code).collect();
    assert_eq!(errors, [code], "{answers:?}");
    assert_eq!(answers.last().map(|message| message.kind), Some(b'Z'), "{answers:?}");
    let counted = wire.ask("SELECT count(*) FROM divisions").await;
    assert!(counted.iter().any(|message| message.kind == b'D' && message.body.ends_with(b"9")), "{counted:?}");
}

#[test]
fn messages_that_do_not_fit_each_other_are_errors() {
    attack(|| async {
        let site = site().await;
        let mut wire = let_in(&site).await;
        let wire = &mut wire;
        let six: &[u8] = &6_i32.to_be_bytes();
        let counted = || parse("", COUNT, &[INT4]);
        // Nothing was prepared or bound of that name.
        is_told(wire, &[execute("nothing", 0)], "34000").await;
        is_told(wire, &[bind("", "nothing", &[], &[], &[])], "26000").await;
        is_told(wire, &[describe(b'S', "nothing")], "26000").await;
        is_told(wire, &[describe(b'P', "nothing")], "34000").await;
        // What comes after an error is not heard before the exchange ends.
        is_told(
            wire,
            &[execute("nothing", 0), counted(), bind("", "", &[1], &[Some(six)], &[]), execute("", 0)],
            "34000",
        )
        .await;
        // Numbers of values, forms and columns.
        is_told(wire, &[counted(), bind("", "", &[], &[], &[])], "08P01").await;
        is_told(wire, &[counted(), bind("", "", &[1], &[Some(six), Some(six)], &[])], "08P01").await;
        is_told(wire, &[counted(), bind("", "", &[1, 1, 1], &[Some(six)], &[])], "08P01").await;
        is_told(wire, &[counted(), bind("", "", &[7], &[Some(six)], &[])], "22023").await;
        is_told(wire, &[counted(), bind("", "", &[1], &[Some(six)], &[9])], "22023").await;
        let wide = [counted(), bind("", "", &[1], &[Some(six)], &[0, 1, 0]), execute("", 0)];
        is_told(wire, &wide, "08P01").await;
        // Values of a wrong length or form.
        is_told(wire, &[counted(), bind("", "", &[1], &[Some(&six[..3])], &[])], "22P03").await;
        is_told(wire, &[counted(), bind("", "", &[1], &[Some(&[6; 400])], &[])], "22P03").await;
        is_told(wire, &[counted(), bind("", "", &[1], &[Some(b"")], &[])], "22P03").await;
        is_told(wire, &[counted(), bind("", "", &[0], &[Some(b"six")], &[])], "22P02").await;
        is_told(wire, &[counted(), bind("", "", &[0], &[Some(&[0xff, 0xfe])], &[])], "22P02").await;
        // Numbers in binary that say of themselves what they are not.
        let numeric = parse("", COUNT, &[1_700]);
        let wrong: [&[u8]; 5] =
            [b"", &[0, 9], &[0xff; 8], &[0x7f, 0xff, 0, 0, 0, 0, 0, 0], &[0, 1, 0, 0, 0xc0, 0, 0, 0, 0, 1]];
        for value in wrong {
            is_told(wire, &[numeric.clone(), bind("", "", &[1], &[Some(value)], &[])], "22P03").await;
        }
        let list = parse("", "SELECT count(*) FROM divisions WHERE level = ANY($1)", &[1_007]);
        let endless = [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 23, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 1];
        let wrong: [&[u8]; 3] = [b"", &[0xff; 12], &endless];
        for value in wrong {
            wire.send(&[list.clone(), bind("", "", &[1], &[Some(value)], &[]), sync()].concat()).await;
            let answers = wire.until_ready().await;
            assert!(answers.iter().any(|message| message.kind == b'E'), "{answers:?}");
        }
        // Names that are taken.
        let twice = [parse("s", COUNT, &[INT4]), parse("s", COUNT, &[INT4])];
        is_told(wire, &twice, "42P05").await;
        is_told(wire, &[parse("t", "SELECT 1; SELECT 2", &[])], "42601").await;
        // What there is not is closed all the same.
        wire.send(&[close(b'S', "nothing"), close(b'P', "nothing"), sync()].concat()).await;
        let closed: Vec<_> = wire.until_ready().await.iter().map(|message| message.kind).collect();
        assert_eq!(closed, b"33Z");
        still_serves(&site).await;
    });
}

#[test]
fn messages_that_cannot_be_read_end_the_connection_at_most() {
    attack(|| async {
        let site = site().await;
        let counted = parse("", COUNT, &[INT4]);
        let bound = |body: &[u8]| [counted.clone(), framed(b'B', body), sync()].concat();
        let messages: Vec<Vec<u8>> = vec![
            // Of no kind, or of one that does not belong here.
            framed(0, b"x"),
            framed(0xff, b"x"),
            framed(b'?', &[0; 100]),
            framed(b'F', &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0]),
            framed(b'd', b"copied"),
            framed(b'c', &[]),
            framed(b'f', &text("no")),
            framed(b'p', &text("again")),
            startup("hub-admin", &[]),
            // Lengths.
            vec![b'Q', 0, 0, 0, 0],
            vec![b'Q', 0, 0, 0, 3],
            vec![b'Q', 0x7f, 0xff, 0xff, 0xff],
            vec![b'Q', 0xff, 0xff, 0xff, 0xff],
            vec![b'B', 0, 0x20, 0, 0],
            framed(b'Q', &[]),
            framed(b'Q', b"SELECT 1"),
            framed(b'Q', &[0xff, 0xfe, 0]),
            framed(b'Q', b"SELECT '\0'\0"),
            framed(b'P', &[]),
            framed(b'P', b"no end"),
            framed(b'P', &[text("s"), text("SELECT 1"), vec![0x7f, 0xff]].concat()),
            framed(b'P', &[text("s"), text("SELECT 1"), vec![0xff, 0xff, 0, 0]].concat()),
            framed(b'P', &[text("s"), text("SELECT 1")].concat()),
            framed(b'D', &[]),
            framed(b'D', b"S"),
            framed(b'D', &[vec![b'?'], text("")].concat()),
            framed(b'C', &[]),
            framed(b'C', &[vec![b'?'], text("")].concat()),
            framed(b'E', &[]),
            framed(b'E', &[0]),
            framed(b'E', &[0, 0xff, 0xff, 0xff, 0xff]),
            framed(b'S', &[1, 2, 3]),
            framed(b'H', &[1, 2, 3]),
            // Counts that promise more than comes.
            bound(&[]),
            bound(&[0, 0]),
            bound(&[0, 0, 0x7f, 0xff]),
            bound(&[0, 0, 0xff, 0xff]),
            bound(&[0, 0, 0, 0, 0x7f, 0xff]),
            bound(&[0, 0, 0, 0, 0xff, 0xff, 0, 0]),
            bound(&[0, 0, 0, 1, 0, 1, 0, 1, 0x7f, 0xff, 0xff, 0xff, 6]),
            bound(&[0, 0, 0, 1, 0, 1, 0, 1, 0xff, 0xff, 0xff, 0xfe, 6, 0, 0]),
            bound(&[0, 0, 0, 1, 0, 1, 0, 1, 0, 0, 0, 4, 0, 0, 0, 6, 0x7f, 0xff]),
            bound(&[0, 0, 0, 1, 0, 1, 0, 1, 0, 0, 0, 4, 0, 0, 0, 6]),
            // Half a message, and no more.
            query("SELECT count(*) FROM divisions")[..12].to_vec(),
        ];
        for (at, message) in messages.iter().enumerate() {
            let mut wire = let_in(&site).await;
            wire.send(message).await;
            wire.send(&sync()).await;
            wire.hang_up().await;
            let said = wire.rest().await;
            assert!(said.len() < 10_000, "message {at} was answered with {} bytes", said.len());
        }
        still_serves(&site).await;
    });
}

#[test]
fn much_is_refused_and_nothing_is_kept_of_it() {
    attack(|| async {
        let site = site().await;
        let mut wire = let_in(&site).await;
        // More than a question may have: refused by its length, before it is there.
        wire.send(&[b'Q', 0, 0x40, 0, 0]).await;
        let said = wire.rest().await;
        assert!(said.windows(6).any(|part| part == b"C54000"), "{}", String::from_utf8_lossy(&said));

        let mut wire = let_in(&site).await;
        let deep = format!("SELECT {}1{}", "(".repeat(100_000), ")".repeat(100_000));
        for sql in [
            deep,
            format!("SELECT 1{}", " + 1".repeat(100_000)),
            format!("SELECT '{}'", "x".repeat(900_000)),
            ";".repeat(500_000),
            format!("SELECT 1{}", "; SELECT 1".repeat(50)),
            "/*".repeat(200_000),
            "$a$".repeat(100_000),
            "PREPARE p AS ".repeat(50_000),
            format!("EXECUTE p ({})", "1, ".repeat(200_000)),
            format!("BEGIN; {} ROLLBACK", "SAVEPOINT s;".repeat(2_000)),
        ] {
            let answers = wire.ask(&sql).await;
            assert_eq!(answers.last().map(|message| message.kind), Some(b'Z'), "{}", &sql[..20]);
        }
        // Statements and portals have room for some.
        for at in 0..1_100 {
            wire.send(&parse(&format!("s{at}"), COUNT, &[INT4])).await;
        }
        wire.send(&sync()).await;
        let answers = wire.until_ready().await;
        let full: Vec<_> = answers.iter().filter(|message| message.kind == b'E').map(Message::code).collect();
        assert_eq!(full, ["53400"]);
        let six: &[u8] = &6_i32.to_be_bytes();
        wire.send(&query("BEGIN")).await;
        wire.until_ready().await;
        for at in 0..100 {
            wire.send(&bind(&format!("p{at}"), "s0", &[1], &[Some(six)], &[])).await;
        }
        wire.send(&sync()).await;
        let answers = wire.until_ready().await;
        let full: Vec<_> = answers.iter().filter(|message| message.kind == b'E').map(Message::code).collect();
        assert_eq!(full, ["53400"]);
        still_serves(&site).await;
    });
}

#[test]
fn a_wrong_key_cancels_nothing() {
    attack(|| async {
        let site = site().await;
        let token = site.hub.token("health-analyst");
        let settings = [("options", "-c purpose=epidemiology -c statement_timeout=2s")];
        let (mut wire, key) = Wire::let_in(site.postgres, "health-analyst", &token, &settings).await;
        wire.send(&query(ENDLESS)).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let mut wrong = key.clone();
        *wrong.last_mut().unwrap() ^= 1;
        let other_pid = [&[0_u8, 0, 0x7f, 0x7f][..], &key[4..]].concat();
        for request in [
            wrong,
            other_pid,
            key[..4].to_vec(),
            [&key[..4], &[0_u8; 4][..]].concat(),
            [&key[..], &[0_u8; 8][..]].concat(),
        ] {
            let said = begins_with(site.postgres, &cancel(&request)).await;
            assert!(!said.starts_with(b"R"), "{said:?}");
        }
        let answers = wire.until_ready().await;
        let error = answers.iter().find(|message| message.kind == b'E').unwrap();
        assert_eq!(error.field(b'M').as_deref(), Some("canceling statement due to statement timeout"));

        wire.send(&query(ENDLESS)).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        begins_with(site.postgres, &cancel(&key)).await;
        let answers = wire.until_ready().await;
        let error = answers.iter().find(|message| message.kind == b'E').unwrap();
        assert_eq!(error.field(b'M').as_deref(), Some("canceling statement due to user request"));
    });
}

#[test]
fn many_that_say_nothing_do_not_keep_others_out() {
    attack(|| async {
        let site = site().await;
        let mut silent = Vec::new();
        for at in 0..200 {
            let mut wire = Wire::open(site.postgres).await;
            if at % 2 == 0 {
                wire.send(&startup("health-analyst", &[])[..10]).await;
            }
            silent.push(wire);
        }
        still_serves(&site).await;
        for mut wire in silent {
            assert!(wire.rest().await.len() < 200);
        }
    });
}

/// A conversation that goes well, as one piece.
fn good(token: &str) -> Vec<u8> {
    let six: &[u8] = &6_i32.to_be_bytes();
    [
        startup("health-analyst", &PURPOSE),
        password(token),
        query("BEGIN; DECLARE c CURSOR FOR SELECT code, name FROM divisions ORDER BY code"),
        query("FETCH 3 FROM c; CLOSE c; COMMIT; SHOW purpose"),
        query("PREPARE q (int) AS SELECT name FROM divisions WHERE level = $1; EXECUTE q (6)"),
        parse("s", COUNT, &[INT4]),
        describe(b'S', "s"),
        bind("p", "s", &[1], &[Some(six)], &[1]),
        describe(b'P', "p"),
        execute("p", 1),
        parse("m", "MOVE FORWARD 1 FROM p", &[]),
        bind("m", "m", &[], &[], &[]),
        execute("m", 0),
        close(b'P', "p"),
        sync(),
        parse("", "SELECT name, level FROM divisions WHERE code = $1", &[0]),
        bind("", "", &[0], &[Some(b"420191")], &[0, 1]),
        execute("", 0),
        sync(),
        query("COPY (SELECT code FROM divisions) TO STDOUT (FORMAT csv, HEADER)"),
        query("SET statement_timeout = '5s'; SELECT nothing FROM divisions"),
        terminate(),
    ]
    .concat()
}

fn mutated(good: &[u8], rng: &mut StdRng) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for _ in 0..rng.random_range(1..=4) {
        if bytes.is_empty() {
            break;
        }
        let at = rng.random_range(0..bytes.len());
        let end = (at + rng.random_range(1..=40)).min(bytes.len());
        match rng.random_range(0..7) {
            0 => bytes[at] = rng.random(),
            1 => bytes[at] ^= 1 << rng.random_range(0..8),
            2 => drop(bytes.drain(at..end)),
            3 => {
                let piece = bytes[at..end].to_vec();
                drop(bytes.splice(at..at, piece));
            }
            4 => {
                let noise: Vec<u8> = (0..rng.random_range(1..=40)).map(|_| rng.random()).collect();
                drop(bytes.splice(at..at, noise));
            }
            5 => bytes.truncate(at),
            _ => {
                let word = [0, 1, 4, 0xff, 0x7fff, 0x7fff_ffff, 0xffff_ffff_u32][rng.random_range(0..7)].to_be_bytes();
                for (byte, new) in bytes[at..].iter_mut().zip(word) {
                    *byte = new;
                }
            }
        }
    }
    bytes
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is no number: `{value}`")))
}

#[test]
fn conversations_that_were_tampered_with_come_to_an_end() {
    attack(|| async {
        let site = Arc::new(site().await);
        let token = site.hub.token("health-analyst");
        let good = good(&token);
        let said = {
            let mut wire = Wire::open(site.postgres).await;
            wire.send(&good).await;
            wire.rest().await
        };
        // It was heard to its end: the last but one message is an error about a column.
        assert!(said.windows(6).any(|part| part == b"C42703"), "{}", String::from_utf8_lossy(&said));
        let (cases, seed) =
            (setting("GRIDHUB_WIRE_CASES").unwrap_or(CASES), setting("GRIDHUB_WIRE_SEED").unwrap_or(SEED));
        let room = Arc::new(Semaphore::new(AT_ONCE));
        let mut running = Vec::new();
        for case in seed..seed + cases {
            let permit = Arc::clone(&room).acquire_owned().await.unwrap();
            let bytes = mutated(&good, &mut StdRng::seed_from_u64(case));
            let address = site.postgres;
            running.push(tokio::spawn(async move {
                let _permit = permit;
                let mut wire = Wire::open(address).await;
                wire.send(&bytes).await;
                wire.hang_up().await;
                let ended = timeout(Duration::from_secs(15), wire.rest()).await;
                ended.is_ok().then_some(case)
            }));
        }
        let mut ended = 0;
        for one in running {
            ended += u64::from(one.await.is_ok_and(|case| case.is_some()));
        }
        assert_eq!(ended, cases, "from seed {seed} on");
        still_serves(&site).await;
    });
}
