//! As much of HTTP/1.1 as a client needs that fetches one page.

/// Longest head of a request, in bytes.
pub(super) const MAX_HEAD_BYTES: usize = 8 << 10;
/// Most headers of a request.
const MAX_HEADERS: usize = 64;
/// The page.
const PATH: &str = "/metrics";
/// What the page is.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What a client gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The page; without its text, if only the head was asked for.
    Page { body: bool },
    /// A refusal.
    Refusal(Refusal),
}

/// Why a client does not get the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    BadRequest,
    NotFound,
    MethodNotAllowed,
    RequestTimeout,
    HeadTooLarge,
}

impl Refusal {
    fn status(self) -> &'static str {
        match self {
            Refusal::BadRequest => "400 Bad Request",
            Refusal::NotFound => "404 Not Found",
            Refusal::MethodNotAllowed => "405 Method Not Allowed",
            Refusal::RequestTimeout => "408 Request Timeout",
            Refusal::HeadTooLarge => "431 Request Header Fields Too Large",
        }
    }

    /// All of the answer.
    pub(super) fn response(self) -> Vec<u8> {
        let status = self.status();
        let allow = if self == Refusal::MethodNotAllowed { "Allow: GET, HEAD\r\n" } else { "" };
        let body = format!("{status}; the metrics are at {PATH}\n");
        let head = head(status, &format!("Content-Type: text/plain\r\n{allow}"), body.len());
        (head + &body).into_bytes()
    }
}

/// What the bytes of a client ask for; `None` if they are the beginning of a request.
pub(super) fn parse(received: &[u8]) -> Option<Answer> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let refuse = |refusal| Some(Answer::Refusal(refusal));
    match request.parse(received) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) if received.len() < MAX_HEAD_BYTES => return None,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return refuse(Refusal::HeadTooLarge);
        }
        Err(_) => return refuse(Refusal::BadRequest),
    }
    let path = request.path.unwrap_or_default().split('?').next();
    if path != Some(PATH) {
        return refuse(Refusal::NotFound);
    }
    match request.method {
        Some("GET") => Some(Answer::Page { body: true }),
        Some("HEAD") => Some(Answer::Page { body: false }),
        _ => refuse(Refusal::MethodNotAllowed),
    }
}

/// The page with this text.
pub(super) fn page(text: &str, body: bool) -> Vec<u8> {
    let head = head("200 OK", &format!("Content-Type: {CONTENT_TYPE}\r\n"), text.len());
    (head + if body { text } else { "" }).into_bytes()
}

fn head(status: &str, headers: &str, body_bytes: usize) -> String {
    format!(
        "HTTP/1.1 {status}\r\n{headers}Content-Length: {body_bytes}\r\nConnection: close\r\n\r\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_may_come_in_pieces() {
        let request = b"GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n\r\n";
        for end in 0..request.len() {
            assert_eq!(parse(&request[..end]), None, "{end} bytes");
        }
        assert_eq!(parse(request), Some(Answer::Page { body: true }));
    }

    #[test]
    fn what_is_no_request_for_the_page_is_refused() {
        let headers = "a: b\r\n".repeat(MAX_HEADERS + 1);
        let long = format!("GET /metrics HTTP/1.1\r\na: {}", "b".repeat(MAX_HEAD_BYTES));
        for (request, expected) in [
            ("GET / HTTP/1.1\r\n\r\n", Refusal::NotFound),
            ("GET /metricsx HTTP/1.0\r\n\r\n", Refusal::NotFound),
            ("POST /metrics HTTP/1.1\r\n\r\n", Refusal::MethodNotAllowed),
            ("GET /metrics HTTP/2.0\r\n\r\n", Refusal::BadRequest),
            ("\0", Refusal::BadRequest),
            ("GET /metrics HTTP/1.1\r\nno header\r\n\r\n", Refusal::BadRequest),
            (&format!("GET /metrics HTTP/1.1\r\n{headers}\r\n"), Refusal::HeadTooLarge),
            (&long, Refusal::HeadTooLarge),
        ] {
            assert_eq!(parse(request.as_bytes()), Some(Answer::Refusal(expected)), "{request}");
        }
    }

    #[test]
    fn answers_say_how_long_they_are() {
        let answer = String::from_utf8(page("abc", true)).unwrap();
        assert!(answer.contains("Content-Length: 3\r\n") && answer.ends_with("\r\n\r\nabc"));
        let answer = String::from_utf8(page("abc", false)).unwrap();
        assert!(answer.contains("Content-Length: 3\r\n") && answer.ends_with("\r\n\r\n"));
        let answer = String::from_utf8(Refusal::MethodNotAllowed.response()).unwrap();
        assert!(answer.contains("Allow: GET, HEAD\r\n"), "{answer}");
    }
}
