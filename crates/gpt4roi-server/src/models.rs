//! `/v1/models`: the one that is served.

use axum::{
    Json,
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use crate::{
    app::{App, Parts, short},
    fault::{Fault, Result},
};

/// `GET /v1/models`
pub(crate) async fn list(State(app): State<App>) -> Response {
    Json(json!({"object": "list", "data": [app.card()]})).into_response()
}

/// `GET /v1/models/{id}`
pub(crate) async fn get(State(app): State<App>, Path(id): Path<String>) -> Result<Response> {
    if id == app.model {
        return Ok(Json(app.card()).into_response());
    }
    Err(Fault::ModelNotFound { param: "id", model: short(&id), served: app.model.clone() })
}

impl Parts {
    fn card(&self) -> Value {
        let config = self.engine.config();
        json!({
            "id": self.model, "object": "model", "created": self.created, "owned_by": "gpt4roi",
            "context_length": config.llama.max_position_embeddings,
            "image_tokens": config.vision.patches(),
            "max_tokens": self.limits.max_tokens,
            "adapter": self.adapter,
        })
    }
}
