use std::collections::BTreeSet;

use anyhow::bail;
use axum::body::Body as AnyBody;
use glassine_core::Limits;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::super::jobs::Jobs;
use super::*;
use crate::config::DeviceConfig;
use crate::pool::Pool;
use crate::router::Router as Mailboxes;
use crate::shared::{Exports as Served, Shared};
use crate::sync::{AtomicBool, AtomicU64, AtomicUsize, Mutex, Ordering};

/// A server of some devices, without anybody who serves them.
pub(in super::super) fn server(configs: &[DeviceConfig]) -> Arc<Shared> {
    let mailboxes = Arc::new(Mailboxes::new(1).unwrap());
    let open = |config| Arc::new(Device::open(config, None).unwrap());
    Arc::new(Shared {
        exports: Mutex::new(Served::new(configs.iter().map(open).collect())),
        limits: Limits::default(),
        pool: Pool::new(Arc::clone(&mailboxes)),
        storage: Pool::new(Arc::clone(&mailboxes)),
        router: mailboxes,
        connections: AtomicUsize::new(0),
        spilled: AtomicU64::new(0),
    })
}

pub(in super::super) fn blank(export: &str, read_only: bool) -> DeviceConfig {
    let size_bytes = Some(1 << 20);
    let quota_bytes = (!read_only).then_some(1 << 19);
    let export = export.to_owned();
    DeviceConfig { export, size_bytes, quota_bytes, read_only, ..DeviceConfig::default() }
}

/// A control socket without the socket: snapshots last until they are cancelled.
struct Asked {
    state: Arc<State>,
    drained: Arc<AtomicBool>,
    runtime: tokio::runtime::Runtime,
}

impl Asked {
    fn new() -> Self {
        let shared = server(&[blank("a", false), blank("", true)]);
        let snapshots = Jobs::new(|_, request, progress| {
            while request.out.ends_with("long") && !progress.cancelled.load(Ordering::Relaxed) {
                thread::yield_now();
            }
            bail!("no disk")
        });
        let drained = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&drained);
        let drain = move || told.store(true, Ordering::Relaxed);
        let state = Arc::new(State::new(shared, snapshots, drain));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Self { state, drained, runtime: runtime.unwrap() }
    }

    fn raw(&self, method: &str, path: &str, body: impl Into<AnyBody>) -> (u16, Value) {
        let request = Request::builder().method(method).uri(path).body(body.into()).unwrap();
        let router = router(Arc::clone(&self.state));
        self.runtime.block_on(async {
            let response = router.oneshot(request).await.unwrap();
            let status = response.status().as_u16();
            let bytes = response.into_body().collect().await.unwrap().to_bytes();
            (status, serde_json::from_slice(&bytes).expect("every answer is JSON"))
        })
    }

    fn get(&self, path: &str) -> (u16, Value) {
        self.raw("GET", path, "")
    }

    fn send(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        self.raw(method, path, body.to_string())
    }

    /// It is refused, in words that hold this.
    fn refuses(&self, answer: (u16, Value), status: u16, part: &str) {
        let text = answer.1["error"].as_str().unwrap_or_default();
        assert!(answer.0 == status && text.contains(part), "{answer:?}");
    }
}

fn description() -> Value {
    serde_json::to_value(Description::openapi()).unwrap()
}

#[test]
fn the_description_lists_exactly_the_routes_there_are() {
    let description = description();
    let mut described = BTreeSet::new();
    for (path, operations) in description["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys() {
            described.insert((method.to_uppercase(), path.clone()));
        }
    }
    let name = |(method, path, _): &Route| (method.to_string(), (*path).to_owned());
    let there: BTreeSet<_> = routes().iter().map(name).collect();
    assert_eq!(described, there);
    // And the router has them, and no others.
    let asked = Asked::new();
    for path in described.iter().map(|(_, path)| path) {
        for method in ["GET", "PUT", "POST", "DELETE", "PATCH", "OPTIONS"] {
            let (status, answer) = asked.raw(method, &path.replace("{id}", "7"), "");
            let is_there = described.contains(&(method.to_owned(), path.clone()));
            assert_eq!(status != 405, is_there, "{method} {path}: {status} {answer}");
        }
    }
}

#[test]
fn the_description_is_valid() {
    let description = description();
    let spec = oas3::from_json(description.to_string()).unwrap();
    spec.validate_version().unwrap();
    assert_eq!(spec.operations().count(), routes().len());
    // Every reference leads somewhere.
    let mut references = 0;
    let mut rest = vec![&description];
    while let Some(value) = rest.pop() {
        if let Some(reference) = value.get("$ref").and_then(Value::as_str) {
            references += 1;
            let pointer = reference.strip_prefix('#').expect("within the document");
            assert!(description.pointer(pointer).is_some(), "{reference}");
        }
        match value {
            Value::Array(values) => rest.extend(values),
            Value::Object(values) => rest.extend(values.values()),
            _ => {}
        }
    }
    assert!(references > 10);
}

#[test]
fn exports_are_listed_and_described() {
    let asked = Asked::new();
    let (status, all) = asked.get("/v1/exports");
    assert_eq!((status, all["exports"].as_array().unwrap().len()), (200, 2));
    let expected = json!({
        "export": "a", "size_bytes": 1 << 20, "template": null, "sheet": null,
        "durability": "ephemeral", "connections": 0,
    });
    assert_eq!(all["exports"][0], expected);
    let (status, one) = asked.get("/v1/status?export=a");
    assert_eq!(
        (status, &one["quota_bytes"], &one["generation"]),
        (200, &json!(1 << 19), &json!(null))
    );
    let (status, one) = asked.get("/v1/status?export=");
    assert_eq!(
        (status, &one["durability"], &one["quota_bytes"]),
        (200, &json!("read-only"), &json!(null))
    );
}

#[test]
fn what_is_wrong_is_answered_in_words() {
    let asked = Asked::new();
    asked.refuses(asked.get("/"), 404, "openapi.json");
    asked.refuses(asked.get("/v2/exports"), 404, "/v2/exports");
    asked.refuses(asked.get("/v1/drain"), 405, "takes no GET");
    asked.refuses(asked.get("/v1/status"), 400, "?export=NAME");
    asked.refuses(asked.get("/v1/status?export=a&export=b"), 400, "?export=NAME");
    asked.refuses(asked.get("/v1/status?export=b"), 404, "GET /v1/exports");
    asked.refuses(asked.get("/v1/snapshots/x"), 400, "number");
    asked.refuses(asked.get("/v1/snapshots/1"), 404, "no snapshot 1");
    asked.refuses(asked.raw("DELETE", "/v1/snapshots/1", ""), 404, "no snapshot 1");
    for body in
        ["", "{", "[]", "null", "{}", r#"{"export":"a"}"#, r#"{"export":1,"quota_bytes":1}"#]
    {
        asked.refuses(asked.raw("PUT", "/v1/quota", body), 400, "openapi.json");
    }
    let typo = json!({ "export": "a", "quota_bytes": 1, "qutoa": 2 });
    asked.refuses(asked.send("PUT", "/v1/quota", &typo), 400, "qutoa");
    let negative = json!({ "export": "a", "quota_bytes": -1 });
    asked.refuses(asked.send("PUT", "/v1/quota", &negative), 400, "-1");
    let deep = "[".repeat(BODY_BYTES_MAX);
    asked.refuses(asked.raw("POST", "/v1/close", deep), 400, "openapi.json");
    let long = " ".repeat(BODY_BYTES_MAX + 1);
    asked.refuses(asked.raw("POST", "/v1/close", long), 413, "65536 bytes");
}

#[test]
fn a_quota_is_changed_and_lifted() {
    let asked = Asked::new();
    let put = |export: &str, bytes: Value| {
        asked.send("PUT", "/v1/quota", &json!({ "export": export, "quota_bytes": bytes }))
    };
    let (status, answer) = put("a", json!(4096));
    assert_eq!((status, &answer["quota_bytes"]), (200, &json!(4096)));
    let (status, answer) = put("a", json!(null));
    assert_eq!((status, &answer["quota_bytes"]), (200, &json!(null)));
    asked.refuses(put("", json!(4096)), 409, "read-only");
    asked.refuses(put("b", json!(4096)), 404, "no export");
}

#[test]
fn a_snapshot_is_begun_watched_and_cancelled() {
    let asked = Asked::new();
    let post = |body: &Value| asked.send("POST", "/v1/snapshots", body);
    let ask = |out: &str| post(&json!({ "export": "a", "out": out }));
    let end = |id: u64| loop {
        let (_, answer) = asked.get(&format!("/v1/snapshots/{id}"));
        if answer["state"] != "running" {
            return answer;
        }
    };
    asked.refuses(ask("relative"), 400, "not absolute");
    let level = json!({ "export": "a", "out": "/x", "compress": "zstd:23" });
    asked.refuses(post(&level), 400, "zstd:LEVEL");
    asked.refuses(post(&json!({ "export": "b", "out": "/x" })), 404, "no export");
    let (status, answer) = ask("/long");
    assert_eq!((status, &answer["id"], &answer["state"]), (202, &json!(1), &json!("running")));
    asked.refuses(ask("/long"), 409, "another path");
    asked.refuses(asked.send("POST", "/v1/close", &json!({ "export": "a" })), 409, "snapshot 1");
    let (status, answer) = asked.raw("DELETE", "/v1/snapshots/1", "");
    assert_eq!((status, &answer["state"]), (200, &json!("running")));
    assert_eq!(end(1)["state"], "cancelled");
    assert_eq!(ask("/short").0, 202);
    let failed = end(2);
    assert_eq!((&failed["state"], &failed["error"]), (&json!("failed"), &json!("no disk")));
    let (_, all) = asked.get("/v1/snapshots");
    assert_eq!(all["snapshots"].as_array().unwrap().len(), 2);
    assert_eq!(asked.raw("DELETE", "/v1/snapshots/2", "").0, 200);
    asked.refuses(asked.get("/v1/snapshots/2"), 404, "no longer");
    asked.state.snapshots.finish();
    asked.refuses(ask("/x"), 503, "draining");
}

#[test]
fn a_closed_export_is_gone_once_nobody_uses_it() {
    let asked = Asked::new();
    let close = || asked.send("POST", "/v1/close", &json!({ "export": "a" }));
    // Somebody uses it, and does not let go.
    let device = asked.state.shared.device("a").unwrap();
    let durable = begin_close(&asked.state, "a").unwrap();
    asked.refuses(close(), 409, "is being closed");
    let snapshot = json!({ "export": "a", "out": "/x" });
    asked.refuses(asked.send("POST", "/v1/snapshots", &snapshot), 409, "is being closed");
    drop(device);
    assert_eq!(durable.blocking_recv(), Ok(true));
    asked.refuses(close(), 404, "no export");
    assert_eq!(asked.get("/v1/exports").1["exports"].as_array().unwrap().len(), 1);
    assert_eq!(asked.send("POST", "/v1/close", &json!({ "export": "" })).1["state"], "closed");
    assert!(asked.state.shared.catalog().exports().is_empty());
    asked.state.closing.finish();
    assert!(!asked.state.closing.begin("a"));
}

#[test]
fn drain_is_passed_on() {
    let asked = Asked::new();
    assert_eq!(asked.raw("POST", "/v1/drain", "").0, 202);
    assert!(asked.drained.load(Ordering::Relaxed));
}
