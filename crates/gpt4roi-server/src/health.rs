//! Whether the server lives, and whether it can answer.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use serde_json::json;

use crate::{app::App, fault::Result};

/// `GET /livez`: the server runs.
pub(crate) async fn live() -> Response {
    Json(json!({"status": "ok"})).into_response()
}

/// `GET /readyz`, `GET /health`: the model is loaded and warm, and new questions are taken.
pub(crate) async fn ready(State(app): State<App>) -> Result<Response> {
    app.check_ready()?;
    Ok(Json(json!({"status": "ok"})).into_response())
}
