//! What can be asked for on the control socket: `docs/control.md` for people, `/v1/openapi.json` for programs.
//!
//! The name of an export may be empty, and hold anything: it travels as a query parameter or in a body, not
//! in a path.

use std::path::PathBuf;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Path, Query, Request};
use axum::handler::Handler;
use axum::http::request::Parts;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, on};
use axum::{Json, Router};
use glassine_core::limits::BLOCK_BYTES;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use utoipa::{IntoParams, OpenApi, ToSchema};

use super::State;
use super::jobs::{ENDED_MAX, RUNNING_MAX, Refusal, Snapshot};
use crate::device::Device;
use crate::snapshot;
use crate::sync::{Arc, lock, oneshot, thread};

/// The longest body of a request.
const BODY_BYTES_MAX: usize = 64 << 10;
/// How long a body may take to arrive.
const BODY_TIME_MAX: Duration = Duration::from_secs(5);
/// How long the answer to a close may take. If the device is not closed by then, that goes on.
const CLOSE_TIME_MAX: Duration = Duration::from_secs(20);
/// The levels that zstd has.
const LEVELS: std::ops::RangeInclusive<i32> = 1..=22;

/// An export that is served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Export {
    /// Its name.
    pub export: String,
    /// Size of the device to the byte.
    pub size_bytes: u64,
    /// The template below, if any.
    pub template: Option<String>,
    /// The directory of the sheet, if it has one.
    pub sheet: Option<String>,
    /// What becomes of writes when the process ends.
    pub durability: Durability,
    /// Clients that use it now.
    pub connections: u64,
}

/// What becomes of writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    /// What is flushed survives the process.
    Journal,
    /// They go with the process.
    Ephemeral,
    /// There are none.
    ReadOnly,
}

/// All exports.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Exports {
    /// In the order in which clients see them.
    pub exports: Vec<Export>,
}

/// An export, and what is in its sheet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// What it is.
    #[serde(flatten)]
    pub export: Export,
    /// Bytes that were written and are in the sheet.
    pub written_bytes: u64,
    /// Bytes for which space is set aside.
    pub reserved_bytes: u64,
    /// The most that both may come to; null if there is no quota.
    pub quota_bytes: Option<u64>,
    /// Bytes of the data file.
    pub data_file_bytes: u64,
    /// What they are used for.
    pub slots: Slots,
    /// Checkpoints since the sheet was made; null without a journal.
    pub generation: Option<u64>,
    /// Whether the journal has failed: writes and flushes are refused, reads go on.
    pub journal_failed: bool,
}

/// The slots of a data file, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Slots {
    /// Not in use.
    pub free_bytes: u64,
    /// Private to writes under way.
    pub filling_bytes: u64,
    /// In the map.
    pub live_bytes: u64,
    /// Replaced, and not yet free.
    pub displaced_bytes: u64,
    /// Named by seals only: they are free when the snapshots that need them are done.
    pub sealed_bytes: u64,
}

/// Which export.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Which {
    /// Its name; may be empty.
    export: String,
}

/// A quota to set.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewQuota {
    /// Of which export.
    pub export: String,
    /// The most its sheet may hold; null for no quota.
    #[serde(deserialize_with = "Option::deserialize")]
    #[schema(required)]
    pub quota_bytes: Option<u64>,
}

/// A snapshot to take.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewSnapshot {
    /// Of which export.
    pub export: String,
    /// The file of the layer, as an absolute path on the server's side.
    #[schema(value_type = String)]
    pub out: PathBuf,
    /// Whether the device is flushed first, so that the layer is durable at that moment.
    #[serde(default)]
    pub flush: bool,
    /// How to compress the layer: zstd:LEVEL, from 1 to 22. Not at all if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compress: Option<String>,
}

/// All snapshots that are remembered.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Snapshots {
    /// In the order in which they began.
    pub snapshots: Vec<Snapshot>,
}

/// An export to close.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Close {
    /// Which.
    pub export: String,
}

/// What became of something that takes its time.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Outcome {
    /// "closed", "closing" or "draining".
    pub state: String,
}

/// What is wrong, and what to do.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Failure {
    /// In words.
    pub error: String,
}

/// An answer that is no success.
#[derive(Debug)]
struct Error(StatusCode, String);

type Answer<T> = Result<T, Error>;

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        (self.0, Json(Failure { error: self.1 })).into_response()
    }
}

/// A handler's state. (A type of ours, since that of axum has the name of our own.)
type Control = axum::extract::State<Arc<State>>;

/// A JSON body, whatever its content type says: people type these.
struct Body<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Answer<Self> {
        let arrived = timeout(BODY_TIME_MAX, Bytes::from_request(request, state)).await;
        let arrived = arrived.map_err(|_| {
            let seconds = BODY_TIME_MAX.as_secs();
            let text = format!("the body did not arrive within {seconds} seconds; send it at once");
            Error(StatusCode::REQUEST_TIMEOUT, text)
        })?;
        let bytes = arrived.map_err(|rejection| {
            let advice = match rejection.status() {
                StatusCode::PAYLOAD_TOO_LARGE => {
                    format!("a body has at most {BODY_BYTES_MAX} bytes; send less")
                }
                _ => format!("the body did not arrive ({rejection}); send it again"),
            };
            Error(rejection.status(), advice)
        })?;
        serde_json::from_slice(&bytes).map(Self).map_err(|error| {
            let text =
                format!("the body is not as it should be: {error}; /v1/openapi.json describes it");
            Error(StatusCode::BAD_REQUEST, text)
        })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Which {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Answer<Self> {
        let query = Query::try_from_uri(&parts.uri).map_err(|rejection| {
            let text = format!("{}; name the export: ?export=NAME", rejection.body_text());
            Error(StatusCode::BAD_REQUEST, text)
        })?;
        Ok(query.0)
    }
}

/// Which snapshot: the last part of a path.
struct Id(u64);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Answer<Self> {
        match Path::<u64>::from_request_parts(parts, state).await {
            Ok(Path(id)) => Ok(Self(id)),
            Err(_) => {
                let text = "a snapshot is named by its number; GET /v1/snapshots lists them";
                Err(Error(StatusCode::BAD_REQUEST, text.to_owned()))
            }
        }
    }
}

/// A way to ask for something: method, path, and what answers.
type Route = (Method, &'static str, MethodRouter<Arc<State>>);

fn route<T: 'static>(
    method: Method,
    path: &'static str,
    handler: impl Handler<T, Arc<State>>,
) -> Route {
    let filter = MethodFilter::try_from(method.clone()).expect("a method that HTTP has");
    (method, path, on(filter, handler))
}

/// All there are. A test compares them with their description.
fn routes() -> Vec<Route> {
    vec![
        route(Method::GET, "/v1/exports", list_exports),
        route(Method::GET, "/v1/status", status),
        route(Method::PUT, "/v1/quota", set_quota),
        route(Method::GET, "/v1/snapshots", list_snapshots),
        route(Method::POST, "/v1/snapshots", start_snapshot),
        route(Method::GET, "/v1/snapshots/{id}", get_snapshot),
        route(Method::DELETE, "/v1/snapshots/{id}", remove_snapshot),
        route(Method::POST, "/v1/close", close),
        route(Method::POST, "/v1/drain", drain),
        route(Method::GET, "/v1/openapi.json", describe),
    ]
}

/// Their description.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Glassine control socket",
        description = "Ask about, and tell, a running server. Sizes are in bytes.",
    ),
    paths(
        list_exports,
        status,
        set_quota,
        list_snapshots,
        start_snapshot,
        get_snapshot,
        remove_snapshot,
        close,
        drain,
        describe
    )
)]
struct Description;

/// Everything that a control socket answers.
pub(super) fn router(state: Arc<State>) -> Router {
    let add = |router: Router<_>, (_, path, handler): Route| router.route(path, handler);
    routes()
        .into_iter()
        .fold(Router::new(), add)
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(state)
}

async fn unknown_path(uri: Uri) -> Error {
    let text = format!("there is no {}; GET /v1/openapi.json describes what there is", uri.path());
    Error(StatusCode::NOT_FOUND, text)
}

async fn unknown_method(method: Method, uri: Uri) -> Error {
    let path = uri.path();
    let text = format!("{path} takes no {method}; GET /v1/openapi.json describes what it takes");
    Error(StatusCode::METHOD_NOT_ALLOWED, text)
}

/// Every export, in short.
#[utoipa::path(get, path = "/v1/exports", responses((status = 200, body = Exports)))]
async fn list_exports(control: Control) -> Json<Exports> {
    let devices = control.shared.devices();
    Json(Exports { exports: devices.iter().map(|device| export(device)).collect() })
}

/// One export, and what is in its sheet.
#[utoipa::path(
    get, path = "/v1/status", params(Which),
    responses(
        (status = 200, body = Status),
        (status = 400, body = Failure, description = "The query is wrong"),
        (status = 404, body = Failure, description = "There is no such export"),
    )
)]
async fn status(control: Control, which: Which) -> Answer<Json<Status>> {
    Ok(Json(look(&*find(&control, &which.export)?)))
}

/// Changes the quota of an export. If more is used already, nothing is lost: overwrites and trims go on, and
/// what needs more space is refused.
#[utoipa::path(
    put, path = "/v1/quota", request_body = NewQuota,
    responses(
        (status = 200, body = Status),
        (status = 400, body = Failure, description = "The body is wrong"),
        (status = 404, body = Failure, description = "There is no such export"),
        (status = 409, body = Failure, description = "The export is read-only"),
        (status = 408, body = Failure, description = "The body did not arrive in time"),
        (status = 413, body = Failure, description = "The body is too long"),
    )
)]
async fn set_quota(control: Control, Body(new): Body<NewQuota>) -> Answer<Json<Status>> {
    let device = find(&control, &new.export)?;
    if device.export.read_only {
        let text =
            format!("export {:?} is read-only and takes no space: it has no quota", new.export);
        return Err(Error(StatusCode::CONFLICT, text));
    }
    lock(&device.overlay).set_quota(new.quota_bytes.unwrap_or(u64::MAX));
    tracing::info!(export = new.export, quota_bytes = new.quota_bytes, "quota changed");
    Ok(Json(look(&device)))
}

/// Snapshots under way, and the last that have ended.
#[utoipa::path(get, path = "/v1/snapshots", responses((status = 200, body = Snapshots)))]
async fn list_snapshots(control: Control) -> Json<Snapshots> {
    Json(Snapshots { snapshots: control.snapshots.list() })
}

/// Begins a snapshot of an export.
#[utoipa::path(
    post, path = "/v1/snapshots", request_body = NewSnapshot,
    responses(
        (status = 202, body = Snapshot, description = "It has begun: ask for it by its id"),
        (status = 400, body = Failure, description = "The body is wrong"),
        (status = 404, body = Failure, description = "There is no such export"),
        (status = 409, body = Failure, description = "Another snapshot, or a close, is in the way"),
        (status = 408, body = Failure, description = "The body did not arrive in time"),
        (status = 413, body = Failure, description = "The body is too long"),
        (status = 503, body = Failure, description = "The server ends, or can do no more at a time"),
    )
)]
async fn start_snapshot(
    control: Control,
    Body(new): Body<NewSnapshot>,
) -> Answer<(StatusCode, Json<Snapshot>)> {
    if !new.out.is_absolute() {
        let text = format!(
            "the path {:?} is not absolute, and the server's directory is not yours",
            new.out
        );
        return Err(Error(StatusCode::BAD_REQUEST, text + "; give one that begins with /"));
    }
    let compress = new.compress.as_deref().map(parse_compress).transpose();
    let compress = compress.map_err(|text| Error(StatusCode::BAD_REQUEST, text))?;
    not_closing(&control, &new.export)?;
    let device = find(&control, &new.export)?;
    let request = snapshot::Request { out: new.out, flush: new.flush, compress };
    let out = request.out.display().to_string();
    let snapshot = control.snapshots.start(device, request).map_err(refuse)?;
    tracing::info!(id = snapshot.id, export = snapshot.export, out, "snapshot begun");
    Ok((StatusCode::ACCEPTED, Json(snapshot)))
}

/// One snapshot, as it is now.
#[utoipa::path(
    get, path = "/v1/snapshots/{id}", params(("id" = u64, Path, description = "Its id")),
    responses(
        (status = 200, body = Snapshot),
        (status = 400, body = Failure, description = "The id is no number"),
        (status = 404, body = Failure, description = "There is no such snapshot, or no longer"),
    )
)]
async fn get_snapshot(control: Control, Id(id): Id) -> Answer<Json<Snapshot>> {
    control.snapshots.get(id).map(Json).ok_or_else(|| forgotten(id))
}

/// Cancels a snapshot that is under way; forgets one that has ended. Answers what it was.
#[utoipa::path(
    delete, path = "/v1/snapshots/{id}", params(("id" = u64, Path, description = "Its id")),
    responses(
        (status = 200, body = Snapshot),
        (status = 400, body = Failure, description = "The id is no number"),
        (status = 404, body = Failure, description = "There is no such snapshot, or no longer"),
    )
)]
async fn remove_snapshot(control: Control, Id(id): Id) -> Answer<Json<Snapshot>> {
    control.snapshots.remove(id).map(Json).ok_or_else(|| forgotten(id))
}

/// Closes an export: no new client finds it, those there are get their replies and are let go, everything
/// written is made durable, and its files are free for others. The server goes on.
#[utoipa::path(
    post, path = "/v1/close", request_body = Close,
    responses(
        (status = 200, body = Outcome, description = "It is closed"),
        (status = 202, body = Outcome, description = "It takes long, and goes on"),
        (status = 400, body = Failure, description = "The body is wrong"),
        (status = 404, body = Failure, description = "There is no such export, or no longer"),
        (status = 409, body = Failure, description = "It is being closed, or snapshotted"),
        (status = 408, body = Failure, description = "The body did not arrive in time"),
        (status = 413, body = Failure, description = "The body is too long"),
        (status = 500, body = Failure, description = "It is closed, but could not be made durable"),
        (status = 503, body = Failure, description = "The server ends, and closes all there are"),
    )
)]
async fn close(
    control: Control,
    Body(Close { export }): Body<Close>,
) -> Answer<(StatusCode, Json<Outcome>)> {
    let durable = begin_close(&control, &export)?;
    match timeout(CLOSE_TIME_MAX, durable).await {
        Ok(Ok(true)) => Ok(outcome(StatusCode::OK, "closed")),
        Ok(_) => {
            let text = format!(
                "export {export:?} is closed, but its journal had failed: what was not flushed before is lost; mend the storage before it is served again"
            );
            Err(Error(StatusCode::INTERNAL_SERVER_ERROR, text))
        }
        Err(_) => Ok(outcome(StatusCode::ACCEPTED, "closing")),
    }
}

/// Has the whole server drain, as SIGTERM does.
#[utoipa::path(post, path = "/v1/drain", responses((status = 202, body = Outcome)))]
async fn drain(control: Control) -> (StatusCode, Json<Outcome>) {
    (control.drain)();
    outcome(StatusCode::ACCEPTED, "draining")
}

/// This description.
#[utoipa::path(
    get, path = "/v1/openapi.json",
    responses((status = 200, description = "OpenAPI 3.1", body = serde_json::Value))
)]
async fn describe() -> Json<utoipa::openapi::OpenApi> {
    // Made when it is asked for, so that it takes no memory meanwhile.
    Json(Description::openapi())
}

/// Has a thread close an export; answers how to hear whether it is durable.
fn begin_close(control: &Arc<State>, export: &str) -> Answer<oneshot::Receiver<bool>> {
    not_closing(control, export)?;
    find(control, export)?;
    if let Some(id) = control.snapshots.running(export) {
        let text = format!(
            "snapshot {id} of export {export:?} is under way; wait for it, or cancel it: DELETE /v1/snapshots/{id}"
        );
        return Err(Error(StatusCode::CONFLICT, text));
    }
    if !control.closing.begin(export) {
        return Err(refuse(Refusal::Finishing));
    }
    let (closed, durable) = oneshot::channel();
    let (state, name) = (Arc::clone(control), export.to_owned());
    let run = move || {
        tracing::info!(
            export = name,
            "closing: requests in flight are answered, new clients refused"
        );
        // Requests are handled by one thread, and while an export is being closed, no other closes it.
        let device = state.shared.withdraw(&name).expect("it was just found");
        let is_durable = state.shared.close(device);
        tracing::info!(export = name, is_durable, "closed");
        state.closing.end(&name);
        // Whoever asked may have gone.
        let _ = closed.send(is_durable);
    };
    if let Err(error) = thread::Builder::new().name("close".into()).spawn(run) {
        control.closing.end(export);
        return Err(refuse(Refusal::NoThread(error)));
    }
    Ok(durable)
}

fn not_closing(control: &State, export: &str) -> Answer<()> {
    if control.closing.contains(export) {
        let text =
            format!("export {export:?} is being closed; once it is, there is none of this name");
        return Err(Error(StatusCode::CONFLICT, text));
    }
    Ok(())
}

fn find(control: &State, export: &str) -> Answer<Arc<Device>> {
    control.shared.device(export).ok_or_else(|| {
        let text = format!("there is no export {export:?}; GET /v1/exports lists those there are");
        Error(StatusCode::NOT_FOUND, text)
    })
}

fn forgotten(id: u64) -> Error {
    let text = format!(
        "there is no snapshot {id}, or no longer: the last {ENDED_MAX} that ended are remembered, and GET /v1/snapshots lists them"
    );
    Error(StatusCode::NOT_FOUND, text)
}

fn refuse(refusal: Refusal) -> Error {
    let (status, text) = match refusal {
        Refusal::SameFile(id) => {
            (StatusCode::CONFLICT, format!("snapshot {id} writes this file; give another path"))
        }
        Refusal::TooMany => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!(
                "{RUNNING_MAX} snapshots are under way, as many as may be; wait for one of them"
            ),
        ),
        Refusal::Finishing => (
            StatusCode::SERVICE_UNAVAILABLE,
            "the server is draining; start it again first".to_owned(),
        ),
        Refusal::NoThread(error) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("no thread can be started for it ({error}); try again later"),
        ),
    };
    Error(status, text)
}

fn outcome(status: StatusCode, state: &str) -> (StatusCode, Json<Outcome>) {
    (status, Json(Outcome { state: state.to_owned() }))
}

/// The level of `zstd:LEVEL`.
pub fn parse_compress(text: &str) -> Result<i32, String> {
    let level = text.strip_prefix("zstd:").and_then(|level| level.parse().ok());
    level.filter(|level| LEVELS.contains(level)).ok_or_else(|| {
        let (least, most) = (LEVELS.start(), LEVELS.end());
        format!(
            "{text:?} is no way to compress; write zstd:LEVEL, with a level from {least} to {most}"
        )
    })
}

fn export(device: &Device) -> Export {
    let connections = lock(&device.overlay).sessions() as u64;
    Export {
        export: device.export.name.clone(),
        size_bytes: device.export.size_bytes,
        template: device.template_path().map(|path| path.display().to_string()),
        sheet: device.sheet_path().map(|path| path.display().to_string()),
        durability: match device.is_durable() {
            true => Durability::Journal,
            false if device.export.read_only => Durability::ReadOnly,
            false => Durability::Ephemeral,
        },
        connections,
    }
}

fn look(device: &Device) -> Status {
    let export = export(device);
    let (counts, tally, quota, generation, journal_failed) = {
        let overlay = lock(&device.overlay);
        let generation = overlay.has_journal().then(|| overlay.generation());
        let failed = overlay.has_failed();
        (overlay.counts(), overlay.tally(), overlay.quota_bytes(), generation, failed)
    };
    let block = u64::from(BLOCK_BYTES);
    let bytes = |slots: u32| u64::from(slots) * block;
    Status {
        export,
        written_bytes: tally.slots * block,
        reserved_bytes: tally.reserved * block,
        quota_bytes: Some(quota).filter(|quota| *quota != u64::MAX),
        data_file_bytes: bytes(counts.total),
        slots: Slots {
            free_bytes: bytes(counts.free),
            filling_bytes: bytes(counts.filling),
            live_bytes: bytes(counts.live),
            displaced_bytes: bytes(counts.displaced),
            sealed_bytes: bytes(counts.sealed),
        },
        generation,
        journal_failed,
    }
}

#[cfg(test)]
pub(super) mod tests {
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
        asked.refuses(
            asked.send("POST", "/v1/close", &json!({ "export": "a" })),
            409,
            "snapshot 1",
        );
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
}
