//! Refusals as RFC 9457 `application/problem+json`, and the one table from error codes to HTTP statuses.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use model::Trouble;
use model::error::{CODES, exit};
use serde::Serialize;

/// A problem document.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[schema(as = HttpProblem)]
pub struct Problem {
    /// Where the error is explained, relative to this server.
    #[serde(rename = "type")]
    pub kind: String,
    /// What this code stands for, always the same for one code.
    pub title: String,
    /// The HTTP status, repeated.
    pub status: u16,
    /// What failed here, with values.
    pub detail: String,
    /// Stable error code.
    pub code: String,
    /// What to do next, in words.
    pub hint: String,
    /// The command to type next, if the hint names one.
    pub next: Option<String>,
    /// Whether trying again helps: `safe`, `later`, `read-first`, `after-change`.
    pub retry: String,
    /// Whose turn it is: `client`, `cluster`, `server`.
    pub blame: String,
    /// The exit status with which a command line ends on this.
    pub exit: u8,
    /// The causes beneath, outermost first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
}

/// A refused request: the trouble, and the status under which it is told.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// What is wrong.
    pub trouble: Trouble,
    /// How HTTP says so.
    pub status: StatusCode,
    /// Whether to ask for credentials in the way command line clients understand.
    pub challenge: bool,
}

impl From<Trouble> for Refusal {
    fn from(trouble: Trouble) -> Refusal {
        let status = status_of(&trouble);
        Refusal { trouble, status, challenge: false }
    }
}

impl Refusal {
    /// A trouble under a status that its code alone does not tell.
    pub fn with_status(trouble: Trouble, status: StatusCode) -> Refusal {
        Refusal { trouble, status, challenge: false }
    }

    /// No such route.
    pub fn no_route(path: &str) -> Refusal {
        let shown: String = path.chars().take(120).collect();
        let trouble = Trouble::bad_request(format!("there is nothing at `{shown}`"), "GET /v1 lists what there is");
        Refusal::with_status(trouble, StatusCode::NOT_FOUND)
    }

    /// A way in that Patroni has and this program does not (yet).
    pub fn not_implemented(what: impl Into<String>, hint: impl Into<String>) -> Refusal {
        Refusal::with_status(Trouble::bad_request(what, hint), StatusCode::NOT_IMPLEMENTED)
    }

    /// The document.
    pub fn problem(&self) -> Problem {
        let trouble = &self.trouble;
        let title = CODES.iter().find(|(code, _)| *code == trouble.code.0).map_or("error", |(_, title)| title);
        Problem {
            kind: format!("/v1/errors/{}", trouble.code),
            title: title.to_owned(),
            status: self.status.as_u16(),
            detail: trouble.reason.clone(),
            code: trouble.code.to_string(),
            hint: trouble.hint.clone(),
            next: command_in(&trouble.hint),
            retry: retry_of(trouble.exit).to_owned(),
            blame: blame_of(self.status).to_owned(),
            exit: trouble.exit,
            causes: trouble.causes.clone(),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self.problem()).unwrap_or_default();
        let mut response = (self.status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.challenge {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"stemma\", Bearer"));
        }
        response
    }
}

/// The HTTP status for a trouble: by code where a code has one meaning in HTTP, else by what it would mean as an exit
/// status.
pub fn status_of(trouble: &Trouble) -> StatusCode {
    match trouble.code.0.as_ref() {
        "ST1301" => StatusCode::BAD_REQUEST,
        "ST1302" => StatusCode::PAYLOAD_TOO_LARGE,
        "ST2101" | "ST2108" => StatusCode::NOT_FOUND,
        "ST1102" | "ST1103" | "ST1104" | "ST1105" | "ST2107" => StatusCode::UNPROCESSABLE_ENTITY,
        _ => match trouble.exit {
            exit::USAGE => StatusCode::BAD_REQUEST,
            exit::UNKNOWN => StatusCode::GATEWAY_TIMEOUT,
            exit::REFUSED | exit::NEGATIVE | exit::CONFLICT => StatusCode::CONFLICT,
            exit::DENIED => StatusCode::FORBIDDEN,
            exit::UNREACHABLE => StatusCode::SERVICE_UNAVAILABLE,
            // FAILED, OTHERWISE, and whatever a newer node may send.
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        },
    }
}

fn retry_of(exit_status: u8) -> &'static str {
    match exit_status {
        exit::UNREACHABLE => "later",
        exit::UNKNOWN | exit::CONFLICT | exit::OTHERWISE => "read-first",
        exit::USAGE | exit::REFUSED | exit::DENIED | exit::NEGATIVE => "after-change",
        _ => "safe",
    }
}

fn blame_of(status: StatusCode) -> &'static str {
    if status == StatusCode::INTERNAL_SERVER_ERROR || status == StatusCode::NOT_IMPLEMENTED {
        "server"
    } else if status.is_server_error() || status == StatusCode::CONFLICT {
        "cluster"
    } else {
        "client"
    }
}

/// The first command in backticks.
fn command_in(hint: &str) -> Option<String> {
    hint.split('`').skip(1).step_by(2).find(|piece| piece.starts_with("stemma ")).map(str::to_owned)
}
