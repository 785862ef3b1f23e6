//! `/assets/<hash>.<ext>`: the stylesheet and the icon.

use actix_web::web::{Data, Path};
use actix_web::{HttpRequest, HttpResponse};

use crate::http::assets::Assets;
use crate::http::error;

/// Handles `GET /assets/{name}`.
pub async fn get(request: HttpRequest, assets: Data<Assets>, name: Path<String>) -> HttpResponse {
    match assets.find(&format!("/assets/{name}")) {
        Some((content, media_type)) => HttpResponse::Ok()
            .insert_header(("Content-Type", media_type))
            .insert_header(("Cache-Control", "public, max-age=31536000, immutable"))
            .body(content.to_owned()),
        None => error::not_found(request, assets).await,
    }
}
