package admin

import (
	"context"
	"io"
	"net/http"

	"relayd/internal/api"
)

// Backup streams a backup of the data directory: app.App.
type Backup func(ctx context.Context, w io.Writer) error

// downloadBackup is for the admin socket only: a backup holds private keys, which no API key gives a right to.
func (s *Server) downloadBackup(w http.ResponseWriter, r *http.Request) {
	if !infoOf(r).trusted {
		s.problem(w, r, &api.Problem{
			Status: http.StatusForbidden, Code: api.CodeForbiddenScope,
			Detail: "A backup holds private keys: it is given out on the admin socket only.",
		})
		return
	}
	if s.deps.Backup == nil {
		s.problem(w, r, notFound("backup"))
		return
	}
	w.Header().Set("Content-Type", "application/x-tar")
	if err := s.deps.Backup(r.Context(), download(&request{Request: r, w: w})); err != nil {
		s.log.Error("backup.failed", "err", err)
		_ = aborted(err)
	}
	s.log.Info("backup.written")
}
