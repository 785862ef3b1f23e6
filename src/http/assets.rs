//! `/assets/<hash>.<ext>`: the stylesheet and the mark, immutable under the hash of their bytes.

use actix_web::web::{Data, Path};
use actix_web::{HttpRequest, HttpResponse};

use crate::app::App;
use crate::http::error;
use crate::http::response::Frame;
use crate::secret::{base64url, sha256};

const STYLESHEET: &str = include_str!("../../templates/assets/portcullis.css");
const MARK: &str = include_str!("../../templates/assets/portcullis.svg");

/// The files, and where pages find them.
pub struct Assets {
    /// What every page shows.
    pub frame: Frame,
}

impl Assets {
    /// For pages of the product `product`.
    pub fn new(product: &str) -> Self {
        let path = |content: &str, ext: &str| {
            format!(
                "/assets/{}.{ext}",
                base64url(&sha256(content.as_bytes())[..12])
            )
        };
        Self {
            frame: Frame {
                product: product.to_owned(),
                stylesheet: path(STYLESHEET, "css"),
                icon: path(MARK, "svg"),
            },
        }
    }

    /// The file of a path, with its type.
    pub fn find(&self, path: &str) -> Option<(&'static str, &'static str)> {
        match path {
            _ if path == self.frame.stylesheet => Some((STYLESHEET, "text/css; charset=utf-8")),
            _ if path == self.frame.icon => Some((MARK, "image/svg+xml")),
            _ => None,
        }
    }
}

/// `GET /assets/{name}`.
pub async fn get(
    request: HttpRequest,
    app: Data<App>,
    assets: Data<Assets>,
    name: Path<String>,
) -> HttpResponse {
    match assets.find(&format!("/assets/{name}")) {
        Some((content, kind)) => HttpResponse::Ok()
            .insert_header(("Content-Type", kind))
            .insert_header(("Cache-Control", "public, max-age=31536000, immutable"))
            .body(content),
        None => error::not_found(request, app, assets).await,
    }
}
