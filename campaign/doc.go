// Package campaign is one message to many recipients.
package campaign
