//! A server as its clients see it.

// Helpers of tests fail by panicking too.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use serde_json::{Value, json};

use crate::process::{Ctl, Running};

/// Starts `ctl run --json` of a serve job; gives it with its address.
pub fn serve(run: Ctl, log: &Path) -> (Running, String) {
    let mut running = run.start(log);
    let line: Value = serde_json::from_str(&running.line()).unwrap();
    let endpoint = line["endpoint"].as_str().unwrap();
    let address = endpoint.trim_start_matches("http://").split('/').next().unwrap().to_owned();
    (running, address)
}

/// Sends an embedding request.
pub fn ask(address: &str, body: &Value) -> TcpStream {
    let (mut stream, body) = (TcpStream::connect(address).unwrap(), body.to_string());
    let length = body.len();
    let head =
        format!("POST /v1/embeddings HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}");
    write!(stream, "{head}\r\n\r\n{body}").unwrap();
    stream
}

/// The vectors that `vectors` serves of these texts.
pub fn served_vectors(address: &str, texts: &[&str]) -> Vec<Vec<f32>> {
    let mut answer = String::new();
    ask(address, &json!({"model": "vectors", "input": texts})).read_to_string(&mut answer).unwrap();
    let answer: Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    answer["data"].as_array().unwrap().iter().map(|row| floats(&row["embedding"])).collect()
}

/// The vectors in a file of `ctl embed`.
pub fn vectors_of_file(path: &Path) -> Vec<Vec<f32>> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| floats(&serde_json::from_str::<Value>(line).unwrap()["embedding"])).collect()
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
}
