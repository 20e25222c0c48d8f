package admin

import (
	"errors"
	"io"
	"net/http"
	"os"
	"time"
)

// Deadlines of streams. A client must go on all the time, and on the average not slower than the minimum: one byte every
// ten seconds would hold a connection for years.
const (
	streamStall = 30 * time.Second
	streamGrace = 60 * time.Second
	streamRate  = 4 << 10 // bytes per second after the grace
)

// uploadReader streams a request body of limited length, and moves the deadline of the connection as it goes.
type uploadReader struct {
	body    io.Reader
	control *http.ResponseController
	started time.Time
	read    int64
}

// upload returns the body of r as a stream; nothing of it is kept.
func (s *Server) upload(r *request) io.Reader { return newUploadReader(r, s.cfg.MaxUploadBytes) }

func newUploadReader(r *request, most int64) *uploadReader {
	return &uploadReader{
		body:    http.MaxBytesReader(r.w, r.Body, most),
		control: http.NewResponseController(r.w),
		started: time.Now(),
	}
}

func (u *uploadReader) Read(p []byte) (int, error) {
	deadline := time.Now().Add(streamStall)
	if late := u.started.Add(streamGrace + time.Duration(u.read/streamRate)*time.Second); late.Before(deadline) {
		deadline = late
	}
	// A connection without deadlines (a test's recorder) streams without them.
	if err := u.control.SetReadDeadline(deadline); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return 0, err
	}
	n, err := u.body.Read(p)
	u.read += int64(n)
	if err != nil {
		_ = u.control.SetWriteDeadline(time.Now().Add(answerTimeout))
	}
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrDeadlineExceeded) {
		err = bodyError(err)
	}
	return n, err
}

// downloadWriter streams an answer and moves the deadline of the connection as it goes.
type downloadWriter struct {
	w       http.ResponseWriter
	control *http.ResponseController
}

func download(r *request) *downloadWriter {
	return &downloadWriter{r.w, http.NewResponseController(r.w)}
}

func (d *downloadWriter) Write(p []byte) (int, error) {
	if err := d.control.SetWriteDeadline(time.Now().Add(streamStall)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return 0, err
	}
	return d.w.Write(p)
}
