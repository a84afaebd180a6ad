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
    /// Without space: it was given back to the file system.
    pub hole_bytes: u64,
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
    /// Whether the device is flushed first, so that what the layer holds is durable on the device as well.
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
            hole_bytes: bytes(counts.holes),
        },
        generation,
        journal_failed,
    }
}

#[cfg(test)]
pub(super) mod tests;
