//! The end of a server: what is answered, what is refused, what is cut; and clients that stall.

use super::*;

/// So short that what is not finished by the drain itself would be cut.
const NO_LINGER: Duration = Duration::from_millis(1);

fn at_its_end(server: &mut Server) -> Drained {
    server.thread.take().unwrap().join().unwrap().unwrap()
}

#[test]
fn draining_loses_no_request_in_flight_and_refuses_new_ones() {
    let gate = Gate::default();
    let mut server = Server::start(Setup { compute: gate.compute(), ..Setup::default() });
    let address = server.address;
    let body = r#"{"model": "tiny", "input": ["a", "b", "c"]}"#;
    let clients: Vec<_> = (0..8)
        .map(|_| std::thread::spawn(move || request(address, "POST", "/v1/embeddings", "", body).status))
        .collect();
    until("eight requests", || server.app.metrics.queue_tokens.get() == 8 * 9);
    server.stop.store(true, Ordering::SeqCst);
    until("the drain", || server.app.is_draining());
    let late = request(address, "POST", "/v1/embeddings", "", body);
    assert_eq!((late.status, &late.json()["error"]["code"]), (503, &json!("draining")), "{late:?}");
    assert_eq!((late.header("retry-after-ms"), late.header("x-should-retry")), (Some("1000"), Some("true")));
    assert_eq!(request(address, "GET", "/ready", "", "").json()["status"], json!("draining"));
    gate.open();
    for client in clients {
        assert_eq!(client.join().unwrap(), 200);
    }
    assert_eq!(at_its_end(&mut server), Drained { cut: 0 });
    assert!(TcpStream::connect(address).is_err());
}

/// An answer too large for the buffers of a socket, of which only the first bytes are read.
fn slow_reader(server: &Server) -> (TcpStream, Vec<u8>) {
    let body = json!({"model": "tiny", "input": vec!["a"; 200_000]}).to_string();
    let mut stream = begin(server.address, body.len() as u64, &body);
    let mut head = vec![0; 100];
    stream.read_exact(&mut head).unwrap();
    (stream, head)
}

fn large(patience: Patience) -> Setup {
    let limits = EngineLimits { token_budget: 1 << 20, queue_tokens_max: 1 << 20 };
    Setup { patience, limits, tokens_max: 2_000_000, ..Setup::default() }
}

#[test]
fn an_answer_that_is_read_slowly_is_sent_to_its_end() {
    let mut server = Server::start(large(Patience { linger: NO_LINGER, ..Patience::new(WAIT_MAX) }));
    let (mut stream, mut answer) = slow_reader(&server);
    server.stop.store(true, Ordering::SeqCst);
    until("nobody to be let in", || TcpStream::connect(server.address).is_err());
    stream.read_to_end(&mut answer).unwrap();
    let answer = Answer::parse(&String::from_utf8(answer).unwrap());
    assert_eq!(answer.json()["data"].as_array().map(Vec::len), Some(200_000));
    assert_eq!(at_its_end(&mut server), Drained { cut: 0 });
}

#[test]
fn what_is_cut_is_counted() {
    let patience = Patience { linger: NO_LINGER, ..Patience::new(Duration::from_millis(50)) };
    let mut server = Server::start(large(patience));
    let _reader = slow_reader(&server);
    // One without a request is owed nothing.
    let _idle = TcpStream::connect(server.address).unwrap();
    server.stop.store(true, Ordering::SeqCst);
    assert_eq!(at_its_end(&mut server), Drained { cut: 1 });
}

#[test]
fn a_stalled_upload_is_answered_408() {
    let patience = Patience { body: Duration::from_millis(50), ..Patience::new(WAIT_MAX) };
    let server = Server::start(Setup { patience, ..Setup::default() });
    let answer = end(begin(server.address, 100, "{"));
    let error = &answer.json()["error"];
    assert_eq!((answer.status, &error["code"]), (408, &json!("request_timeout")), "{answer:?}");
    assert_eq!(server.app.in_flight.load(Ordering::SeqCst), 0);
    let defaults = Patience::new(Duration::ZERO);
    assert_eq!(defaults.for_body(100), Duration::from_secs(30));
    assert_eq!(defaults.for_body(32 << 20), Duration::from_secs(30 + 128));
}

#[test]
fn a_stalled_upload_holds_no_drain() {
    let patience = Patience { body_draining: Duration::from_millis(50), ..Patience::new(WAIT_MAX) };
    let mut server = Server::start(Setup { patience, ..Setup::default() });
    let upload = begin(server.address, 100, "{");
    until("the upload", || server.app.in_flight.load(Ordering::SeqCst) == 1);
    server.stop.store(true, Ordering::SeqCst);
    assert_eq!(end(upload).status, 408);
    assert_eq!(at_its_end(&mut server), Drained { cut: 0 });
}

#[test]
fn a_head_that_never_ends_is_not_waited_for() {
    let patience = Patience { head: Duration::from_millis(50), ..Patience::new(WAIT_MAX) };
    let server = Server::start(Setup { patience, ..Setup::default() });
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.write_all(b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\n").unwrap();
    stream.set_read_timeout(Some(WAIT_MAX)).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert!(answer.is_empty());
}
