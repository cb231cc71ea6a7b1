//! The server by a plain HTTP client, with a stand-in for the model.

mod drain;
mod load;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use motley_ops::TokenizedText;
use motley_scheduler_core::document::Truncate;
use serde_json::{Value, json};

use super::api::RequestLimits;
use super::app::{App, Loss, ServedModel};
use super::engine::{Compute, Engine, EngineLimits};
use super::keys::Keys;
use super::server::{bind, bind_first, serve};
use super::*;
use crate::text::tokenizer::testing::small_tokenizer;

const HIDDEN: usize = 3;
const BODY_MAX: u64 = 1 << 20;

/// A running server; stops and waits when dropped.
struct Server {
    address: SocketAddr,
    app: Arc<App>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<Result<Drained, ServeError>>>,
}

/// How long a condition is waited for before a test fails. Nothing here takes longer than a second by itself.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Waits for a condition.
fn until(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < WAIT_MAX, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Holds the compute thread until it is opened, or until a test that fails drops it.
#[derive(Clone, Default)]
struct Gate(Arc<AtomicBool>);

impl Gate {
    fn open(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    fn compute(&self) -> Compute {
        let open = Arc::clone(&self.0);
        Box::new(move |texts| {
            until("the gate to open", || open.load(Ordering::SeqCst));
            Ok(texts.iter().flat_map(vector_of).collect())
        })
    }
}

struct Setup {
    limits: EngineLimits,
    truncate: Truncate,
    keys: Keys,
    loaded: bool,
    compute: Compute,
    patience: Patience,
    tokens_max: usize,
}

impl Default for Setup {
    fn default() -> Self {
        let limits = EngineLimits { token_budget: 64, queue_tokens_max: 4096 };
        let compute = Box::new(|texts: &[TokenizedText]| Ok(texts.iter().flat_map(vector_of).collect()));
        Setup {
            limits,
            truncate: Truncate::Error,
            keys: Keys::default(),
            loaded: true,
            compute,
            patience: Patience::new(WAIT_MAX),
            tokens_max: 20_000,
        }
    }
}

/// The stand-in model: a vector that tells which text it came from.
fn vector_of(text: &TokenizedText) -> [f32; HIDDEN] {
    let sum: u32 = text.ids.iter().sum();
    [text.ids.len() as f32, sum as f32, text.ids[1] as f32]
}

impl Server {
    fn start(setup: Setup) -> Server {
        let Setup { tokens_max, truncate, .. } = setup;
        let limits = RequestLimits { inputs_max: tokens_max / 9, tokens_max, truncate };
        let app = Arc::new(App::new("tiny".into(), limits, BODY_MAX, setup.keys, setup.patience));
        if setup.loaded {
            let engine = Engine::start(setup.compute, setup.limits, Arc::clone(&app.metrics));
            let model = ServedModel {
                tokenizer: Arc::new(small_tokenizer(8)),
                engine,
                hidden: HIDDEN,
                prompt: String::new(),
                revision: "abc".into(),
                parent: Some("base".into()),
                loss: Loss::default(),
            };
            app.model.set(model).unwrap();
        }
        let listener = bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (served, flag) = (Arc::clone(&app), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let runtime = runtime().unwrap();
            let stopped = async move {
                while !flag.load(Ordering::SeqCst) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            runtime.block_on(serve(listener, served, stopped))
        });
        Server { address, app, stop, thread: Some(thread) }
    }

    fn request(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        request(self.address, method, path, headers, body)
    }

    fn embed(&self, body: Value) -> Answer {
        self.request("POST", "/v1/embeddings", "", &body.to_string())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: String,
    body: String,
}

impl Answer {
    fn parse(answer: &str) -> Answer {
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        Answer { status, headers: head.to_owned(), body: body.to_owned() }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.headers.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

fn request(address: SocketAddr, method: &str, path: &str, headers: &str, body: &str) -> Answer {
    let mut stream = TcpStream::connect(address).unwrap();
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    // A server that answers early (413) may close before all is sent.
    let _ = stream.write_all(body.as_bytes());
    end(stream)
}

/// Begins an embedding request that announces `length` bytes of body.
fn begin(address: SocketAddr, length: u64, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    let head = "POST /v1/embeddings HTTP/1.1\r\nhost: x\r\nconnection: close";
    write!(stream, "{head}\r\ncontent-length: {length}\r\n\r\n{body}").unwrap();
    stream
}

/// The answer, up to the end of the connection.
fn end(mut stream: TcpStream) -> Answer {
    stream.set_read_timeout(Some(WAIT_MAX)).unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    Answer::parse(&answer)
}

fn first(answer: &Answer) -> Vec<f64> {
    answer.json()["data"][0]["embedding"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

#[test]
fn texts_and_ids_are_embedded_in_order() {
    let server = Server::start(Setup::default());
    let answer = server.embed(json!({"model": "tiny", "input": ["a", "a b", "c c c"], "user": "x"}));
    assert_eq!(answer.status, 200, "{answer:?}");
    let body = answer.json();
    let rows = body["data"].as_array().unwrap();
    let sizes: Vec<f64> = rows.iter().map(|row| row["embedding"][0].as_f64().unwrap()).collect();
    assert_eq!(sizes, [3.0, 4.0, 5.0]);
    assert_eq!(rows.iter().map(|row| row["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!((&body["object"], &body["model"]), (&json!("list"), &json!("tiny")));
    assert_eq!(body["usage"], json!({"prompt_tokens": 12, "total_tokens": 12}));
    assert_eq!(answer.header("x-truncated-inputs"), Some("0"));
    assert!(answer.header("x-request-id").unwrap().starts_with("req_"));
    let as_text = first(&server.embed(json!({"model": "tiny", "input": "a b"})));
    assert_eq!(as_text, first(&server.embed(json!({"model": "tiny", "input": [4, 5]}))));
    assert_eq!(as_text, first(&server.embed(json!({"model": "tiny", "input": [[4, 5]]}))));
    let cut = first(&server.embed(json!({"model": "tiny", "input": "a b", "dimensions": 2})));
    assert!((cut.iter().map(|value| value * value).sum::<f64>() - 1.0).abs() < 1e-6 && cut.len() == 2);
    let echoed = server.request("GET", "/v1/models", "x-request-id: mine-7\r\n", "");
    assert_eq!(echoed.header("x-request-id"), Some("mine-7"));
}

#[test]
fn every_error_is_the_nested_object() {
    let server = Server::start(Setup::default());
    let big = format!(r#"{{"model": "tiny", "input": "{}"}}"#, "a ".repeat(600_000));
    let many = json!({"model": "tiny", "input": vec!["a"; 2223]}).to_string();
    let heavy = json!({"model": "tiny", "input": vec!["a b c a b c"; 2048]}).to_string();
    let of = |input: Value| json!({"model": "tiny", "input": input}).to_string();
    let cases = [
        ("POST", "/v1/embeddings", "{", 400, Value::Null, Value::Null),
        ("POST", "/v1/embeddings", &of(json!("")), 400, json!("input"), Value::Null),
        ("POST", "/v1/embeddings", &of(json!(["a", ""])), 400, json!("input"), Value::Null),
        ("POST", "/v1/embeddings", &of(json!([])), 400, json!("input"), Value::Null),
        ("POST", "/v1/embeddings", &of(json!([4, 9])), 400, json!("input"), Value::Null),
        (
            "POST",
            "/v1/embeddings",
            &of(json!("a b c a b c a")),
            400,
            json!("input"),
            json!("context_length_exceeded"),
        ),
        ("POST", "/v1/embeddings", &many, 400, json!("input"), Value::Null),
        ("POST", "/v1/embeddings", &heavy, 200, Value::Null, Value::Null),
        (
            "POST",
            "/v1/embeddings",
            r#"{"model": "tiny", "input": "a", "dimensions": 4}"#,
            400,
            json!("dimensions"),
            Value::Null,
        ),
        (
            "POST",
            "/v1/embeddings",
            r#"{"model": "other", "input": "a"}"#,
            404,
            json!("model"),
            json!("model_not_found"),
        ),
        ("POST", "/v1/embeddings", &big, 413, Value::Null, json!("request_too_large")),
        ("GET", "/v1/embeddings", "", 405, Value::Null, json!("method_not_supported")),
        ("POST", "/v1/completions", "{}", 404, Value::Null, json!("unknown_url")),
        ("GET", "/v1/models/other", "", 404, json!("model"), json!("model_not_found")),
        ("GET", "/v1/models/%ff", "", 400, Value::Null, Value::Null),
    ];
    for (method, path, body, status, param, code) in cases {
        let answer = server.request(method, path, "", body);
        let what = format!(
            "{method} {path} {} -> {}",
            &body[..body.len().min(80)],
            &answer.body[..answer.body.len().min(300)]
        );
        assert_eq!(answer.status, status, "{what}");
        assert!(answer.header("x-request-id").is_some(), "{what}");
        if status != 200 {
            let error = &answer.json()["error"];
            assert!(error["message"].as_str().is_some_and(|text| text.len() > 10), "{what}");
            assert!(error["type"].is_string(), "{what}");
            assert_eq!((&error["param"], &error["code"]), (&param, &code), "{what}");
        }
    }
    let foreign = server.embed(json!({"model": "tiny", "input": [[100_000]]}));
    assert!(foreign.body.contains("check_embedding_ctx_length=False"), "{foreign:?}");
}

#[test]
fn long_texts_are_cut_where_the_server_says_so() {
    let server = Server::start(Setup { truncate: Truncate::Right, ..Setup::default() });
    let answer = server.embed(json!({"model": "tiny", "input": ["a b c a b c a b", "a"]}));
    assert_eq!((answer.status, answer.header("x-truncated-inputs")), (200, Some("1")));
    assert_eq!(first(&answer)[0], 8.0);
}

#[test]
fn models_health_and_metrics_are_there() {
    let server = Server::start(Setup::default());
    let list = server.request("GET", "/v1/models", "", "").json();
    assert_eq!((&list["object"], &list["data"][0]["id"]), (&json!("list"), &json!("tiny")));
    assert_eq!(list["data"][0]["parent"], json!("base"));
    assert_eq!(server.request("GET", "/v1/models/tiny", "", "").json()["object"], json!("model"));
    assert_eq!(server.request("GET", "/health", "", "").status, 200);
    assert_eq!(server.request("GET", "/ready", "", "").json()["status"], json!("ready"));
    server.embed(json!({"model": "tiny", "input": "a"}));
    server.embed(json!({"model": "tiny", "input": ""}));
    let page = server.request("GET", "/metrics", "", "").body;
    for line in [
        r#"serve_requests_total{status="200"} 1"#,
        r#"serve_requests_total{status="400"} 1"#,
        "serve_inputs_total 1",
        "serve_tokens_total 3",
        "serve_queue_tokens 0",
        "serve_ready 1",
        r#"name="tiny""#,
    ] {
        assert!(page.contains(line), "{line} is not in\n{page}");
    }
}

#[test]
fn without_a_key_nothing_but_the_probes_answers() {
    let path = std::env::temp_dir().join(format!("motley-serve-keys-{}", std::process::id()));
    std::fs::write(&path, "secret\n").unwrap();
    let keys = Keys::read(&path, "keys.txt").unwrap();
    std::fs::remove_file(&path).unwrap();
    let server = Server::start(Setup { keys, ..Setup::default() });
    let body = r#"{"model": "tiny", "input": "a"}"#;
    for headers in ["", "authorization: Bearer wrong\r\n", "authorization: secret\r\n"] {
        let answer = server.request("POST", "/v1/embeddings", headers, body);
        assert_eq!(
            (answer.status, &answer.json()["error"]["code"]),
            (401, &json!("invalid_api_key")),
            "{headers}"
        );
        assert!(!answer.body.contains("secret"));
    }
    assert_eq!(server.request("GET", "/v1/models", "", "").status, 401);
    let admitted = server.request("POST", "/v1/embeddings", "authorization: Bearer secret\r\n", body);
    assert_eq!(admitted.status, 200);
    for path in ["/health", "/ready", "/metrics"] {
        assert_eq!(server.request("GET", path, "", "").status, 200, "{path}");
    }
}

#[test]
fn a_loading_server_is_alive_but_not_ready() {
    let server = Server::start(Setup { loaded: false, ..Setup::default() });
    assert_eq!(server.request("GET", "/health", "", "").status, 200);
    assert_eq!(server.request("GET", "/ready", "", "").json()["status"], json!("loading"));
    let answer = server.embed(json!({"model": "tiny", "input": "a"}));
    assert_eq!((answer.status, answer.header("retry-after-ms")), (503, Some("1000")));
}

#[test]
fn a_text_longer_than_the_budget_runs_alone_and_wedges_nothing() {
    let limits = EngineLimits { token_budget: 4, queue_tokens_max: 4096 };
    let server = Server::start(Setup { limits, ..Setup::default() });
    for _ in 0..3 {
        let answer = server.embed(json!({"model": "tiny", "input": ["a b c a b c", "a", "a b c a b c"]}));
        assert_eq!((answer.status, first(&answer)[0]), (200, 8.0));
    }
}

#[test]
fn a_vector_that_is_not_finite_is_500_for_its_own_request_alone() {
    let (release, hold) = std::sync::mpsc::channel::<()>();
    let mut first = true;
    let compute: Compute = Box::new(move |texts| {
        // The first batch waits, so that the others run together.
        if std::mem::take(&mut first) {
            hold.recv().unwrap();
        }
        let vector =
            |text: &TokenizedText| if text.ids[1] == 5 { [0.0, f32::NAN, 0.0] } else { vector_of(text) };
        Ok(texts.iter().flat_map(vector).collect())
    });
    let server = Server::start(Setup { compute, ..Setup::default() });
    let address = server.address;
    let ask = |input: &str| {
        let body = json!({"model": "tiny", "input": ["a", input]}).to_string();
        std::thread::spawn(move || request(address, "POST", "/v1/embeddings", "", &body))
    };
    let clients = [ask("a"), ask("b"), ask("c")];
    while server.app.in_flight.load(Ordering::SeqCst) < clients.len() {
        std::thread::sleep(Duration::from_millis(1));
    }
    release.send(()).unwrap();
    let [sound, broken, other] = clients.map(|client| client.join().unwrap());
    assert_eq!((sound.status, broken.status, other.status), (200, 500, 200));
    let message = broken.json()["error"]["message"].to_string();
    assert!(message.contains("input 1 holds NaN"), "{message}");
}

#[test]
fn a_failing_batch_is_500_and_a_dead_thread_ends_the_server() {
    let compute: Compute = Box::new(|texts| match texts[0].ids[1] {
        4 => Ok(texts.iter().flat_map(vector_of).collect()),
        5 => Err("no memory".to_owned()),
        _ => panic!("planted"),
    });
    let mut server = Server::start(Setup { compute, ..Setup::default() });
    let answer = server.embed(json!({"model": "tiny", "input": "b"}));
    assert_eq!((answer.status, &answer.json()["error"]["message"]), (500, &json!("no memory")));
    assert_eq!(server.embed(json!({"model": "tiny", "input": "a"})).status, 200);
    assert_eq!(server.embed(json!({"model": "tiny", "input": "c"})).status, 500);
    let end = server.thread.take().unwrap().join().unwrap();
    assert!(matches!(end, Err(ServeError::ComputeThread)), "{end:?}");
}

#[test]
fn a_port_in_use_is_told_with_a_remedy() {
    let first = bind("127.0.0.1:0").unwrap();
    let listen = first.local_addr().unwrap().to_string();
    let message = bind(&listen).unwrap_err().to_string();
    assert!(message.starts_with(&format!("{listen} is in use\nhint:")), "{message}");
    assert!(bind("nonsense").unwrap_err().to_string().contains("ADDRESS:PORT"));
}

#[test]
fn a_name_is_listened_on_only_where_all_its_addresses_are_free() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let addresses =
        |hosts: [&str; 2]| hosts.map(|host| format!("{host}:{port}").parse().unwrap()).into_iter();
    // Other addresses of this machine stand in for the other family, which it may lack.
    for hosts in [["127.0.0.2", "127.0.0.1"], ["127.0.0.1", "127.0.0.2"]] {
        let error = bind_first(addresses(hosts)).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse, "{hosts:?}");
    }
    let listener = bind_first(addresses(["192.0.2.1", "127.0.0.2"])).unwrap();
    assert_eq!(listener.local_addr().unwrap().ip().to_string(), "127.0.0.2");
}
