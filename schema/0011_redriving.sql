-- What operators do with dead letters.

-- When a device is deleted, its letters are looked for: they must not reach the next of its name.
create index dead_letter_by_device on dead_letter (appservice_id, user_id, device_id)
    where redrivable;
