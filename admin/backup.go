package admin

import (
	"context"
	"io"
	"net/http"

	"relayd/internal/api"
)

// Backup streams a backup of the data directory: app.App.
type Backup func(ctx context.Context, w io.Writer) error

// downloadBackup is for the admin socket only: a backup holds private keys.
func (s *Server) downloadBackup(r *request) error {
	if !infoOf(r.Request).trusted {
		return &api.Problem{
			Status: http.StatusForbidden, Code: api.CodeForbiddenScope,
			Detail: "A backup holds private keys: it is given out on the admin socket only.",
		}
	}
	if s.deps.Backup == nil {
		return notFound("backup")
	}
	r.w.Header().Set("Content-Type", "application/x-tar")
	if err := s.deps.Backup(r.Context(), download(r)); err != nil {
		s.log.Error("backup.failed", "err", err)
		return aborted(err)
	}
	s.log.Info("backup.written")
	return nil
}
