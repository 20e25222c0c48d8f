package admin

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"errors"
	"fmt"
	"html/template"
	"io"
	"net/http"
	"strings"

	"golang.org/x/text/language"

	"relayd/campaign"
)

// maxForm bounds the body of an unsubscribe request.
const maxForm = 64 << 10

//go:embed unsubscribe.html
var pageText string

//go:embed unsubscribe.css
var pageStyle string

// pages are the unsubscribe pages.
type pages struct {
	template *template.Template
	policy   string
	matcher  language.Matcher
}

// pageWords are the texts of the pages in one language.
type pageWords struct {
	Lang, Title, Question, Button, Done, Keep, Gone, GoneHint, Trouble string
}

// words holds the languages of the pages; the first one is for everybody else.
var words = []pageWords{ //nolint:gochecknoglobals // constant texts
	{
		"en", "Unsubscribe", "Stop sending newsletters and offers of this sender to", "Unsubscribe",
		"You are unsubscribed. No more newsletters and offers of this sender will be sent to",
		"Messages that you asked for, such as receipts and sign-in codes, are not affected.",
		"This link is not valid", "Please use the whole link as it stands in the message.",
		"That did not work just now. Please try again in a few minutes.",
	},
	{
		"ko", "수신 거부", "이 발신자의 소식지와 광고 메일을 더 이상 받지 않을 주소:", "수신 거부",
		"수신 거부가 완료되었습니다. 이 발신자의 소식지와 광고 메일을 더 이상 보내지 않을 주소:",
		"영수증이나 인증 코드처럼 직접 요청하신 메일은 계속 발송됩니다.",
		"유효하지 않은 링크입니다", "메일에 있는 링크 전체를 그대로 사용해 주세요.",
		"지금은 처리하지 못했습니다. 몇 분 뒤에 다시 시도해 주세요.",
	},
}

func newPages() (*pages, error) {
	t, err := template.New("unsubscribe").Parse(pageText)
	if err != nil {
		return nil, fmt.Errorf("parse unsubscribe page: %w", err)
	}
	sum := sha256.Sum256([]byte(pageStyle))
	return &pages{
		template: t,
		policy: "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) +
			"'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
		matcher: language.NewMatcher([]language.Tag{language.English, language.Korean}),
	}, nil
}

// page is what the template shows.
type page struct {
	Words   pageWords
	Style   template.CSS
	State   string // ask, done, gone, trouble
	Address string // masked
}

func (s *Server) writePage(w http.ResponseWriter, r *http.Request, status int, state, address string) {
	tags, _, _ := language.ParseAcceptLanguage(limited(r.Header.Get("Accept-Language"), 200))
	_, index, _ := s.pages.matcher.Match(tags...)
	var b bytes.Buffer
	if err := s.pages.template.Execute(&b, page{words[index], template.CSS(pageStyle), state, address}); err != nil { //nolint:gosec // ours
		s.problem(w, r, err)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Language", words[index].Lang)
	h.Set("Vary", "Accept-Language")
	s.pageHeader(h)
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes())
}

func limited(s string, most int) string {
	if len(s) > most {
		return ""
	}
	return s
}

// pageHeader keeps the link, which is a secret, out of caches, search engines and Referer fields.
func (s *Server) pageHeader(h http.Header) {
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Robots-Tag", "noindex, nofollow")
	h.Set("Content-Security-Policy", s.pages.policy)
}

// showUnsubscribe shows a page and changes nothing: scanners of links fetch it (RFC 8058 section 1).
func (s *Server) showUnsubscribe(w http.ResponseWriter, r *http.Request) {
	who, err := s.deps.Unsubscribe.ParseToken(r.PathValue("token"))
	if err != nil {
		s.unsubscribeFailed(w, r, err, true)
		return
	}
	s.writePage(w, r, http.StatusOK, "ask", who.Masked())
}

// postUnsubscribe does it before it answers. It needs no cookie and no header of a browser, and never redirects (RFC 8058
// section 3.1 and 3.2).
func (s *Server) postUnsubscribe(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxForm))
	if err != nil {
		s.metrics.unsubscribes.WithLabelValues(formOther).Inc()
		s.pageHeader(w.Header())
		s.problem(w, r, bodyError(err))
		return
	}
	form := formOf(body)
	s.metrics.unsubscribes.WithLabelValues(form).Inc()
	token := r.PathValue("token")
	if form == formOther {
		if who, err := s.deps.Unsubscribe.ParseToken(token); err != nil {
			s.unsubscribeFailed(w, r, err, true)
		} else {
			s.writePage(w, r, http.StatusBadRequest, "ask", who.Masked())
		}
		return
	}
	who, err := s.deps.Unsubscribe.Unsubscribe(r.Context(), token)
	if err != nil {
		s.unsubscribeFailed(w, r, err, form == formPage)
		return
	}
	if who.Created {
		s.log.Info("contact.unsubscribed", "account", who.Account, "campaign", who.Campaign, "reason", form)
	}
	if form == formPage {
		s.writePage(w, r, http.StatusOK, "done", who.Masked())
		return
	}
	s.pageHeader(w.Header())
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, "Unsubscribed\n")
}

// unsubscribeFailed answers every bad token alike, and never tells of success when the store is in trouble.
func (s *Server) unsubscribeFailed(w http.ResponseWriter, r *http.Request, err error, html bool) {
	status, state := http.StatusNotFound, "gone"
	if !errors.Is(err, campaign.ErrBadToken) {
		status, state = http.StatusServiceUnavailable, "trouble"
		w.Header().Set("Retry-After", "120")
		if r.Context().Err() == nil {
			s.log.Error("unsubscribe.failed", "session", infoOf(r).id, "err", err)
		}
	}
	if html || status == http.StatusNotFound {
		s.writePage(w, r, status, state, "")
		return
	}
	s.pageHeader(w.Header())
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, strings.TrimSuffix(words[0].Trouble, ".")+"\n")
}
