//! Distinguishes a user's navigation from other loads of a page (Fetch Metadata Request Headers §2). A
//! prefetch, an image or a script must receive no code and must consume no link, although browsers send cookies with
//! them.

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::Method;
use actix_web::middleware::Next;
use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};

use crate::app::App;
use crate::http::assets::Assets;
use crate::http::error::{self, ErrorPage};
use crate::http::extract::CookieKind;
use crate::oauth::Detail;

/// Why and how the browser loads a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Load {
    /// The document of a window or tab, or a client that does not send Fetch Metadata.
    Document,
    /// An inline frame.
    Frame {
        /// Whether the embedding page is on the site of the issuer. Only then are cookies sent.
        is_same_site: bool,
    },
    /// A load ahead of a navigation that the user may never make.
    Prefetch,
    /// An image, a script, a `fetch`, an object: never a navigation.
    Subresource,
}

impl Load {
    /// Reads the headers of a request. Clients that are not browsers, and old browsers, send none.
    pub(in crate::http) fn of(request: &HttpRequest) -> Self {
        let header = |name: &str| {
            let value = request.headers().get(name);
            value.map(|value| value.to_str().unwrap_or("?"))
        };
        // `Sec-Purpose: prefetch;prerender` too; the others are older spellings of it.
        let is_prefetch = |name| header(name).is_some_and(|value| value.starts_with("prefetch"));
        if ["Sec-Purpose", "Purpose", "X-Moz"]
            .into_iter()
            .any(is_prefetch)
        {
            return Self::Prefetch;
        }
        match header("Sec-Fetch-Dest") {
            None | Some("document") => Self::Document,
            Some("iframe") => Self::Frame {
                is_same_site: matches!(header("Sec-Fetch-Site"), Some("same-origin" | "same-site")),
            },
            Some(_) => Self::Subresource,
        }
    }

    /// Rejects a load that is not a navigation. Returns `None` for a document and for a frame.
    pub(in crate::http) fn refuse(
        self,
        request: &HttpRequest,
        assets: &Assets,
    ) -> Option<HttpResponse> {
        match self {
            Self::Document | Self::Frame { .. } => None,
            Self::Prefetch => {
                let detail = Detail::new("authz.rejected", "fetch_dest");
                error::refused(request, "204", detail, None);
                // Not an error page: the browser would show it when the user navigates.
                let response = HttpResponse::NoContent()
                    .insert_header(("Cache-Control", "no-store"))
                    .finish();
                Some(response)
            }
            Self::Subresource => Some(error::error_page(request, assets, ErrorPage::EMBEDDED)),
        }
    }
}

/// Protects pages: only the navigation of a window or tab may GET them, and a form is rejected if a cookie was sent
/// twice. The server cannot know which cookie belongs to the user, so the form could have another effect than the one it
/// reports: the logout of another session, for instance.
///
/// # Errors
/// Those of the inner service.
pub(in crate::http) async fn documents_only(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, actix_web::Error> {
    let http = request.request();
    if let (Some(app), Some(assets)) = (
        http.app_data::<Data<App>>(),
        http.app_data::<Data<Assets>>(),
    ) {
        let reject = |page| Some(error::error_page(http, assets, page));
        let refusal = match (http.method(), Load::of(http)) {
            (&Method::GET, Load::Frame { .. }) => reject(ErrorPage::EMBEDDED),
            (&Method::GET, load) => load.refuse(http, assets),
            _ if CookieKind::is_any_repeated(http, app) => reject(ErrorPage::DUPLICATE_COOKIE),
            _ => None,
        };
        if let Some(refusal) = refusal {
            return Ok(request.into_response(refusal));
        }
    }
    Ok(next.call(request).await?.map_into_boxed_body())
}
