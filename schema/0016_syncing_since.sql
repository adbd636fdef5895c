-- older workers: from 0014
-- Nobody ever asked since when a device reads its inbox itself.
alter table syncing_device drop column noticed_at;
