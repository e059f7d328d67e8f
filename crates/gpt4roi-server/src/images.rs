//! `/v1/images`: pictures that are uploaded once and asked about often.

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use axum::{
    Extension, Json,
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use gpt4roi::Image;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    app::{App, Parts, unix_seconds},
    auth::Owner,
    body,
    fault::{Fault, Result},
    picture_source::{self, ImageUrl},
    pictures::{Handle, PictureRefused},
};

/// A picture in JSON: `{"image": "data:image/png;base64,…"}`.
#[derive(Debug, Deserialize)]
#[serde(expecting = "an object")]
struct Request {
    image: ImageUrl,
}

/// `POST /v1/images`: a picture's file as it is, or a data URL in JSON.
pub(crate) async fn create(
    State(app): State<App>,
    Extension(owner): Extension<Owner>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    let received = body::receive(body, &app.limits, &app.times, &app.memory).await?;
    let _held = received.held;
    let file = if body::is_of_type(&headers, "application/json") {
        let request: Request = body::json(&headers, received.bytes).await?;
        picture_source::data(&request.image.url, app.limits.picture_bytes, "image")?
    } else if is_picture(&headers) {
        picture_source::check_file_size(received.bytes.len(), app.limits.picture_bytes, "body")?;
        received.bytes
    } else {
        return Err(Fault::MediaType("image/png, image/jpeg, image/webp or application/json"));
    };
    let picture = picture_source::decode(&app, file.clone(), "image").await?;
    let added = app.pictures.add(&owner.0, &file, picture.image.clone(), Instant::now());
    let handle = added.map_err(refused)?;
    Ok(Json(app.about(&handle, &picture.image)).into_response())
}

/// `GET /v1/images/{id}`
pub(crate) async fn get(
    State(app): State<App>,
    Extension(owner): Extension<Owner>,
    Path(id): Path<String>,
) -> Result<Response> {
    let handle = parse(&id)?;
    let image = app.pictures.get(&owner.0, &handle, Instant::now()).ok_or_else(not_found)?;
    Ok(Json(app.about(&handle, &image)).into_response())
}

/// `DELETE /v1/images/{id}`
pub(crate) async fn delete(
    State(app): State<App>,
    Extension(owner): Extension<Owner>,
    Path(id): Path<String>,
) -> Result<Response> {
    let handle = parse(&id)?;
    if app.pictures.remove(&owner.0, &handle, Instant::now()) {
        Ok(Json(json!({"id": handle.to_string(), "object": "image", "deleted": true})).into_response())
    } else {
        Err(not_found())
    }
}

fn is_picture(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    picture_source::is_picture_type(kind.split(';').next().unwrap_or_default().trim())
}

/// What is no handle is the handle of nothing.
fn parse(id: &str) -> Result<Handle> {
    id.parse().map_err(|_| not_found())
}

fn not_found() -> Fault {
    Fault::PictureNotFound { param: "id".into() }
}

fn refused(refused: PictureRefused) -> Fault {
    match refused {
        PictureRefused::TooLarge { .. } => {
            Fault::PictureTooLarge { param: "image".into(), message: refused.to_string() }
        }
        PictureRefused::Quota { retry_after, .. } | PictureRefused::Full { retry_after, .. } => {
            Fault::PictureQuota { message: refused.to_string(), retry_after }
        }
    }
}

impl Parts {
    /// A picture that was used just now. `bytes` are those that count against the quota.
    fn about(&self, handle: &Handle, image: &Arc<Image>) -> Value {
        let (size, bytes) = (image.size(), image.rgb().as_raw().len());
        json!({
            "id": handle.to_string(), "object": "image", "width": size.width, "height": size.height,
            "bytes": bytes, "expires_at": unix_seconds(SystemTime::now() + self.keep),
        })
    }
}
