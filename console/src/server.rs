//! Routes put together, and the listener with its bounds: a stranger can hold a bounded number of connections for a
//! bounded time and make this process hold a bounded number of bytes.

use crate::failover_metrics::Counted;
use crate::problem::Refusal;
use crate::{Backend, Shared, events, follow, health, metrics, patroni, primacy, replication, v1};
use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use model::error::exit;
use model::limits::HTTP_BODY_BYTES_MAX;
use model::{Millis, Trouble};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::openapi::path::{OperationBuilder, PathItemBuilder, PathsBuilder};
use utoipa::openapi::{HttpMethod, InfoBuilder, OpenApi, OpenApiBuilder, ResponseBuilder};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Bounds of the listener.
#[derive(Clone, Debug)]
pub struct Limits {
    /// From the first byte, or the end of the answer before, to the end of the request's head.
    pub header_read: Millis,
    /// From the end of the head to the beginning of the answer, the body of the request included.
    pub request: Millis,
    /// Life of a connection; it ends after the answer under way.
    pub connection: Millis,
    /// Connections at one time; further ones wait in the system's backlog.
    pub connections_max: usize,
    /// Bytes of a request's head.
    pub head_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            header_read: Millis::from_secs(10),
            request: Millis::from_secs(30),
            connection: Millis::from_secs(300),
            connections_max: 512,
            head_bytes_max: 32 << 10,
        }
    }
}

/// After a failed `accept` (no file descriptors left, say) this long passes, or the loop would burn a core.
const ACCEPT_PAUSE: Millis = Millis(100);
/// How long connections may go on at the end of the process.
const SHUTDOWN_GRACE: Millis = Millis::from_secs(2);

/// Every route, with its description. The only place where routes are added: what is not described is not served.
pub(crate) fn routes() -> Described {
    let router = OpenApiRouter::new()
        .routes(routes!(replication::status))
        .routes(routes!(metrics::metrics))
        .routes(routes!(patroni::liveness, patroni::liveness_options))
        .routes(routes!(patroni::patroni, patroni::patroni_options))
        .routes(routes!(patroni::cluster))
        .routes(routes!(patroni::history))
        .routes(routes!(patroni::config, patroni::config_patch, patroni::config_put))
        .routes(routes!(patroni::failsafe, patroni::failsafe_post))
        .routes(routes!(primacy::patroni_switchover, primacy::patroni_cancel))
        .routes(routes!(primacy::patroni_failover))
        .routes(routes!(patroni::restart, patroni::restart_cancel))
        .routes(routes!(patroni::reload))
        .routes(routes!(patroni::reinitialize))
        .routes(routes!(v1::index))
        .routes(routes!(v1::openapi))
        .routes(routes!(v1::error))
        .routes(routes!(v1::status))
        .routes(routes!(v1::nodes))
        .routes(routes!(v1::node, v1::node_remove, v1::node_set))
        .routes(routes!(v1::node_rejoin))
        .routes(routes!(v1::node_reinit))
        .routes(routes!(v1::settings, v1::settings_put))
        .routes(routes!(v1::settings_history))
        .routes(routes!(v1::settings_rollback))
        .routes(routes!(v1::operations))
        .routes(routes!(v1::operation))
        .routes(routes!(v1::operation_cancel))
        .routes(routes!(v1::history))
        .routes(routes!(events::events))
        .routes(routes!(events::topology))
        .routes(routes!(v1::tokens, v1::token_create))
        .routes(routes!(v1::token_revoke))
        .routes(routes!(primacy::switchover, primacy::switchover_cancel))
        .routes(routes!(follow::promote))
        .routes(routes!(follow::forget))
        .routes(routes!(primacy::failover))
        .routes(routes!(primacy::pause))
        .routes(routes!(primacy::resume))
        .routes(routes!(primacy::failovers))
        .routes(routes!(primacy::failover_one))
        .routes(routes!(v1::restart))
        .routes(routes!(v1::certificates_rotate));
    let (mut router, described): (Router<Shared>, OpenApi) = router.split_for_parts();
    let mut paths = PathsBuilder::new();
    for (path, what) in health::PATHS {
        router = router.route(path, axum::routing::get(patroni::health).options(patroni::health));
        let item = [HttpMethod::Get, HttpMethod::Head, HttpMethod::Options]
            .into_iter()
            .fold(PathItemBuilder::new(), |item, method| item.operation(method, health_operation(what)));
        paths = paths.path(*path, item.build());
    }
    let info = InfoBuilder::new().title("stemma").version(env!("CARGO_PKG_VERSION")).description(Some(
        "State and control of a database cluster. GET asks nobody for credentials; everything else needs a bearer token.",
    ));
    let health_paths = OpenApiBuilder::new().info(info.build()).paths(paths.build()).build();
    Described { router, openapi: health_paths.merge_from(described) }
}

fn health_operation(what: &str) -> utoipa::openapi::path::Operation {
    let response = |text: &str| ResponseBuilder::new().description(text).build();
    OperationBuilder::new()
        .tag("health")
        .summary(Some(what))
        .response("200", response("yes; the body of GET is the /patroni document"))
        .response("503", response("no; the body of GET also has `reason` and `reasons`"))
        .build()
}

/// Routes and what describes them.
pub(crate) struct Described {
    router: Router<Shared>,
    openapi: OpenApi,
}

impl Described {
    /// The description alone.
    pub(crate) fn into_openapi(self) -> OpenApi {
        self.openapi
    }
}

/// The router with everything around it.
pub(crate) fn assemble(backend: Shared, limits: &Limits) -> Router {
    let deadline = limits.request;
    routes()
        .router
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(HTTP_BODY_BYTES_MAX))
        .layer(axum::Extension(events::Places::new(limits)))
        .layer(axum::Extension(Arc::new(Counted::new())))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn(move |request: Request, next: Next| within(deadline, request, next)))
        .layer(middleware::from_fn_with_state(backend.clone(), viewpoint))
        .with_state(backend)
}

/// Paths that no route has: health checks by Patroni's substrings, else nothing.
async fn unknown(backend: State<Shared>, method: Method, uri: Uri) -> Response {
    let reserved = ["/v1", "/metrics", "/admin", "/ui"];
    let is_reserved = reserved
        .iter()
        .any(|prefix| uri.path().strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')));
    let asks = matches!(method, Method::GET | Method::HEAD | Method::OPTIONS);
    if is_reserved || !asks {
        return Refusal::no_route(uri.path()).into_response();
    }
    patroni::health(backend, method, uri).await
}

async fn wrong_method(method: Method, uri: Uri) -> Refusal {
    let path: String = uri.path().chars().take(120).collect();
    let trouble = Trouble::bad_request(
        format!("{} is not possible at `{path}`", method.as_str().chars().take(20).collect::<String>()),
        "the header Allow names the methods that are; GET /v1/openapi.json describes them",
    );
    Refusal::with_status(trouble, StatusCode::METHOD_NOT_ALLOWED)
}

fn panicked(cause: Box<dyn std::any::Any + Send>) -> Response {
    let text = cause.downcast_ref::<String>().map(String::as_str).or_else(|| cause.downcast_ref::<&str>().copied());
    // What a panic says may hold values that are nobody's business; it goes to the log alone.
    tracing::error!(cause = text.unwrap_or("unknown"), "a request handler panicked");
    let trouble = Trouble::internal("the request ended in an internal error", "the keeper's log has the cause");
    Refusal::from(trouble).into_response()
}

/// Bounds the whole of a request. What was asked for may still happen: hence the exit status of an unknown outcome.
async fn within(deadline: Millis, request: Request, next: Next) -> Response {
    let changes = !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    match tokio::time::timeout(deadline.duration(), next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let reason = format!("the request took longer than {} s", deadline.seconds());
            let mut trouble = Trouble::unreachable(reason, "look with `stemma status` before trying again");
            if changes {
                trouble.exit = exit::UNKNOWN;
            }
            Refusal::with_status(trouble, StatusCode::GATEWAY_TIMEOUT).into_response()
        }
    }
}

/// Says whose view the answer is, and how old.
async fn viewpoint(State(backend): State<Shared>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    if let Ok(node) = HeaderValue::from_str(backend.node().as_str()) {
        headers.insert("x-stemma-node", node);
    }
    headers.insert("x-stemma-observed-age-ms", HeaderValue::from(backend.liveness().0));
    headers.entry("cache-control").or_insert(HeaderValue::from_static("no-cache"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

/// Listens and serves until `shutdown`; `ST1201` if the address cannot be had.
pub async fn serve(
    listen: SocketAddr,
    backend: Arc<dyn Backend>,
    shutdown: CancellationToken,
) -> Result<JoinHandle<()>, Trouble> {
    serve_with(listen, backend, shutdown, Limits::default()).await.map(|(_, task)| task)
}

/// Like `serve`, with bounds of one's own; also tells the address, for port 0.
pub async fn serve_with(
    listen: SocketAddr,
    backend: Arc<dyn Backend>,
    shutdown: CancellationToken,
    limits: Limits,
) -> Result<(SocketAddr, JoinHandle<()>), Trouble> {
    let refused = |cause: std::io::Error| {
        Trouble::port_taken(
            format!("the API cannot listen on {listen}"),
            format!("`ss -ltnp 'sport = :{}'` shows who does; or set [api] listen in the node file", listen.port()),
        )
        .because(cause)
    };
    let listener = TcpListener::bind(listen).await.map_err(refused)?;
    let address = listener.local_addr().map_err(refused)?;
    let router = assemble(backend, &limits);
    Ok((address, tokio::spawn(accept_loop(listener, router, shutdown, limits))))
}

async fn accept_loop(listener: TcpListener, router: Router, shutdown: CancellationToken, limits: Limits) {
    let slots = Arc::new(Semaphore::new(limits.connections_max));
    let limits = Arc::new(limits);
    loop {
        let slot = tokio::select! {
            () = shutdown.cancelled() => break,
            slot = slots.clone().acquire_owned() => slot.expect("the semaphore is never closed"),
        };
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                tokio::spawn(connection(stream, router.clone(), shutdown.clone(), limits.clone(), slot));
            }
            Err(fault) => {
                tracing::warn!(%fault, "the API could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE.duration()).await;
            }
        }
    }
    drop(listener);
    // Every connection holds a slot: when all are back, all are done.
    let all = u32::try_from(limits.connections_max).unwrap_or(u32::MAX);
    let _ = tokio::time::timeout(SHUTDOWN_GRACE.duration(), slots.acquire_many(all)).await;
}

async fn connection(
    stream: TcpStream,
    router: Router,
    shutdown: CancellationToken,
    limits: Arc<Limits>,
    slot: OwnedSemaphorePermit,
) {
    let _ = stream.set_nodelay(true);
    // HTTP/1 only: every client of these endpoints speaks it, and it has far fewer ways to be abused.
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_read.duration())
        .max_buf_size(limits.head_bytes_max);
    let serving = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => Some(ended),
        () = shutdown.cancelled() => None,
        () = tokio::time::sleep(limits.connection.duration()) => None,
    };
    if ended.is_none() {
        serving.as_mut().graceful_shutdown();
        // A client that does not read its answer would hold on for ever.
        let _ = tokio::time::timeout(limits.request.duration(), serving).await;
    }
    drop(slot);
}
